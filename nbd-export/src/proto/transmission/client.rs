//! The client's side of transmission: requests out, whole and checked replies back.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};

use super::read_assembly::{ReadAssembly, ReadReply};
use super::rules::{RuleBroken, check_header, check_query};
use super::status_assembly::{ContextStatus, StatusAssembly};
use crate::proto::constants::{ChunkCode, CommandCode};
use crate::proto::errno::Errno;
use crate::proto::error::{PeerMisbehaved, ProtocolError};
use crate::proto::flags::{CommandFlags, ReplyFlags};
use crate::proto::limits::{MAX_CONTENT_CHUNKS, MAX_ERROR_PAYLOAD};
use crate::proto::reply::{Chunk, ChunkHeader, ReplyHeader};
use crate::proto::request::{Command, Cookie, RequestHeader};
use crate::proto::session::{HeaderStyle, Negotiated};
use crate::proto::text::ErrorText;

/// What a request came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Completion {
    /// It succeeded, and has nothing to show.
    Done,
    /// The bytes of a READ.
    Read(ReadReply),
    /// The status of every context that was asked for, in the order of selection or of the filter.
    Status(Vec<ContextStatus>),
}

/// An error that a server answered with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the server answered {errno}{}", text.in_parentheses())]
pub struct ServerError {
    /// The error. ESHUTDOWN, if the server said that at all.
    pub errno: Errno,
    /// What the server said to it.
    pub text: ErrorText,
    /// Where it failed, if the server said so.
    pub offset: Option<u64>,
}

/// A request that is finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    /// The request.
    pub cookie: Cookie,
    /// Its result: whole, or an error. A part of one is never given out.
    pub result: Result<Completion, ServerError>,
}

#[derive(Debug)]
enum Content {
    Read(ReadAssembly),
    Status(StatusAssembly),
    Nothing,
}

#[derive(Debug)]
struct Pending {
    offset: u64,
    content: Content,
    error: Option<ServerError>,
    /// Error chunks so far: a server may report every sector, but not for ever.
    errors: usize,
}

/// The requests of one session that are in flight.
#[derive(Debug)]
pub struct ClientTransmission {
    session: Negotiated,
    pending: HashMap<Cookie, Pending>,
    last_cookie: u64,
    /// A header that was taken and found good; its payload is awaited.
    receiving: Option<(ReplyHeader, usize)>,
}

impl ClientTransmission {
    /// Nothing in flight.
    pub fn new(session: Negotiated) -> Self {
        Self {
            session,
            pending: HashMap::new(),
            last_cookie: 0,
            receiving: None,
        }
    }

    /// The session.
    pub fn session(&self) -> &Negotiated {
        &self.session
    }

    /// Requests that have no whole reply yet.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Appends a request to `output`.
    ///
    /// # Errors
    /// The server would have to refuse it. Nothing was sent.
    pub fn submit(&mut self, command: &Command, output: &mut BytesMut) -> Result<Cookie, RuleBroken> {
        let cookie = self.submit_head(command, output)?;
        if let Command::Write { data, .. } = command {
            output.extend_from_slice(data);
        }
        Ok(cookie)
    }

    /// Appends a request to `output`, but not the data of a WRITE: the caller sends them next.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_head(&mut self, command: &Command, output: &mut BytesMut) -> Result<Cookie, RuleBroken> {
        let cookie = Cookie(self.last_cookie + 1);
        let header = command.header(self.session.style, cookie);
        check_header(&header, &self.session)?;
        let content = match command {
            Command::Read {
                offset,
                length,
                dont_fragment,
            } => Content::Read(ReadAssembly::new(*offset, *length, *dont_fragment)),
            Command::BlockStatus {
                offset,
                length,
                req_one,
                filter,
            } => {
                check_query(*offset, *length, filter.as_deref(), &self.session)?;
                let expected = match filter {
                    Some(ids) => ids.clone(),
                    None => self.session.contexts.iter().map(|context| context.id).collect(),
                };
                let beyond = self.session.export.size - offset;
                Content::Status(StatusAssembly::new(*length, beyond, *req_one, expected))
            }
            _ => Content::Nothing,
        };
        self.last_cookie += 1;
        command.encode_head(self.session.style, cookie, output);
        self.pending.insert(
            cookie,
            Pending {
                offset: header.offset,
                content,
                error: None,
                errors: 0,
            },
        );
        Ok(cookie)
    }

    /// Appends the end of the session to `output`. Nothing may be sent after it.
    pub fn disconnect(&mut self, output: &mut BytesMut) {
        self.last_cookie += 1;
        RequestHeader {
            flags: CommandFlags::NONE,
            command: CommandCode::DISC,
            cookie: Cookie(self.last_cookie),
            offset: 0,
            length: 0,
        }
        .encode(self.session.style, output);
    }

    /// Takes messages from the start of `input` until a request is finished; `None` when more bytes are needed.
    /// What [`Self::payload_due`] announces then may be received into `input` or elsewhere.
    ///
    /// # Errors
    /// The server broke a rule, or the two have lost step: the session is over, and so is all that is in flight.
    pub fn advance(&mut self, input: &mut BytesMut) -> Result<Option<Finished>, ProtocolError> {
        loop {
            let (header, payload_len) = match self.receiving.take() {
                Some(receiving) => receiving,
                None => {
                    let Some((header, len)) = ReplyHeader::decode(self.session.style, input)? else {
                        return Ok(None);
                    };
                    let payload_len = self.check(&header)?;
                    input.advance(len);
                    (header, payload_len)
                }
            };
            if input.len() < payload_len {
                self.receiving = Some((header, payload_len));
                return Ok(None);
            }
            let payload = input.split_to(payload_len).freeze();
            let finished = self.take_message(header, payload)?;
            if finished.is_some() {
                return Ok(finished);
            }
        }
    }

    /// Bytes of the payload that must come next: a header announced them, and was held to be good, so they are no more than
    /// was asked for. `None` where a header is next.
    pub fn payload_due(&self) -> Option<usize> {
        self.receiving.map(|(_, length)| length)
    }

    /// Takes the whole payload that is due, for a caller that has received it into memory of its own.
    ///
    /// # Errors
    /// As [`Self::advance`].
    ///
    /// # Panics
    /// No payload is due, or one of another length.
    pub fn take_payload(&mut self, payload: Bytes) -> Result<Option<Finished>, ProtocolError> {
        let (header, length) = self.receiving.take().expect("a payload is due");
        assert_eq!(payload.len(), length, "the whole payload is given");
        self.take_message(header, payload)
    }

    fn take_message(
        &mut self,
        header: ReplyHeader,
        payload: Bytes,
    ) -> Result<Option<Finished>, ProtocolError> {
        match header {
            ReplyHeader::Simple { error, cookie } => self.take_simple(cookie, error, payload).map(Some),
            ReplyHeader::Chunk(header) => self.take_chunk(&header, payload),
        }
    }

    /// Holds a header against its request, before a byte of its payload is awaited: the bytes that follow.
    fn check(&self, header: &ReplyHeader) -> Result<usize, ProtocolError> {
        let length = match header {
            ReplyHeader::Simple { error, cookie } => {
                let pending = self
                    .pending
                    .get(cookie)
                    .ok_or(PeerMisbehaved::UnknownCookie(*cookie))?;
                match (&pending.content, self.session.style) {
                    (Content::Read(read), HeaderStyle::Simple) if error.is_none() => read.length().into(),
                    (Content::Read(_), HeaderStyle::Simple) | (Content::Nothing, _) => 0,
                    (Content::Status(_), _) if error.is_some() => 0,
                    _ => return Err(PeerMisbehaved::UnexpectedSimpleReply(*cookie).into()),
                }
            }
            ReplyHeader::Chunk(header) => {
                let cookie = header.cookie;
                let pending = self
                    .pending
                    .get(&cookie)
                    .ok_or(PeerMisbehaved::UnknownCookie(cookie))?;
                check_chunk(header, pending, self.session.style)?;
                header.length
            }
        };
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn take_simple(
        &mut self,
        cookie: Cookie,
        error: Option<Errno>,
        payload: Bytes,
    ) -> Result<Finished, ProtocolError> {
        let pending = self.open(cookie)?;
        match (error, &mut pending.content) {
            (Some(errno), _) => pending.fail(ServerError {
                errno,
                text: ErrorText::default(),
                offset: None,
            }),
            (None, Content::Read(read)) if !payload.is_empty() => {
                let offset = read.offset();
                read.take_data(offset, payload)?;
            }
            (None, _) => {}
        }
        self.finish(cookie)
    }

    fn take_chunk(
        &mut self,
        header: &ChunkHeader,
        payload: Bytes,
    ) -> Result<Option<Finished>, ProtocolError> {
        let pending = self.open(header.cookie)?;
        match (Chunk::decode(header.chunk, payload)?, &mut pending.content) {
            (Chunk::None, _) => {}
            (Chunk::Data { offset, data }, Content::Read(read)) => read.take_data(offset, data)?,
            (Chunk::Hole { offset, length }, Content::Read(read)) => read.take_hole(offset, length)?,
            (Chunk::Status { context, descriptors }, Content::Status(status)) => {
                status.take(context, descriptors)?;
            }
            (Chunk::Error { errno, text, offset }, _) => {
                pending.errors += 1;
                if pending.errors > MAX_CONTENT_CHUNKS {
                    return Err(PeerMisbehaved::TooManyChunks.into());
                }
                pending.fail(ServerError { errno, text, offset });
            }
            _ => return Err(PeerMisbehaved::UnexpectedChunk(header.chunk).into()),
        }
        if header.flags.contains(ReplyFlags::DONE) {
            self.finish(header.cookie).map(Some)
        } else if header.chunk == ChunkCode::NONE {
            Err(PeerMisbehaved::EmptyChunkNotLast.into())
        } else {
            Ok(None)
        }
    }

    fn open(&mut self, cookie: Cookie) -> Result<&mut Pending, ProtocolError> {
        Ok(self
            .pending
            .get_mut(&cookie)
            .ok_or(PeerMisbehaved::UnknownCookie(cookie))?)
    }

    fn finish(&mut self, cookie: Cookie) -> Result<Finished, ProtocolError> {
        let pending = self
            .pending
            .remove(&cookie)
            .ok_or(PeerMisbehaved::UnknownCookie(cookie))?;
        let result = match (pending.error, pending.content) {
            (Some(error), _) => Err(error),
            (None, Content::Nothing) => Ok(Completion::Done),
            (None, Content::Read(read)) => Ok(Completion::Read(read.finish()?)),
            (None, Content::Status(status)) => Ok(Completion::Status(status.finish()?)),
        };
        Ok(Finished { cookie, result })
    }
}

impl Pending {
    /// Keeps one error: the first, but ESHUTDOWN before all others, because it means the end.
    fn fail(&mut self, error: ServerError) {
        if self.error.is_none() || error.errno == Errno::Shutdown {
            self.error = Some(error);
        }
    }
}

fn check_chunk(header: &ChunkHeader, pending: &Pending, style: HeaderStyle) -> Result<(), PeerMisbehaved> {
    let (chunk, length) = (header.chunk, header.length);
    if let Some(found) = header.offset
        && found != pending.offset
    {
        return Err(PeerMisbehaved::WrongReplyOffset {
            expected: pending.offset,
            found,
        });
    }
    let longest = match (chunk, &pending.content) {
        (ChunkCode::NONE, _) => 0,
        (ChunkCode::OFFSET_DATA, Content::Read(read)) => 8 + u64::from(read.length()),
        (ChunkCode::OFFSET_HOLE, Content::Read(_)) => 12,
        (ChunkCode::BLOCK_STATUS, Content::Status(status)) if style == HeaderStyle::Structured => {
            status.longest_chunk(chunk)
        }
        (ChunkCode::BLOCK_STATUS_EXT, Content::Status(status)) if style == HeaderStyle::Extended => {
            status.longest_chunk(chunk)
        }
        (error, _) if error.is_error() => MAX_ERROR_PAYLOAD,
        _ => return Err(PeerMisbehaved::UnexpectedChunk(chunk)),
    };
    if length > longest {
        return Err(PeerMisbehaved::BadChunkLength { chunk, length });
    }
    Ok(())
}
