//! From what an export answers to the bytes of a reply.

use bytes::{Bytes, BytesMut};
use volmap::range::ByteRange;

use crate::export::{ContextIndex, Export, ExportError, Piece, ReadShape};
use crate::proto::transmission::replies::{ReplyEncoder, StatusQuery};
use crate::proto::{Command, ContextId, Errno, ErrorText, ReplyTo};

/// A selected context of a session, and where its export lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Selected {
    pub(super) id: ContextId,
    pub(super) index: ContextIndex,
}

/// What is needed to serve the requests of one session.
pub(super) struct Answerer {
    pub(super) export: std::sync::Arc<dyn Export>,
    pub(super) encoder: ReplyEncoder,
    pub(super) selected: Vec<Selected>,
}

/// The buffers of one whole reply, in order.
pub(super) type Reply = Vec<Bytes>;

/// Why a request has no other answer than an error.
#[derive(Debug)]
struct Refusal {
    errno: Errno,
    text: String,
}

impl From<ExportError> for Refusal {
    fn from(error: ExportError) -> Self {
        let errno = match &error {
            ExportError::Gone(_) => Errno::Shutdown,
            ExportError::ReadOnly => Errno::Perm,
            ExportError::Unsupported(_) => Errno::Inval,
            ExportError::Io(source) => Errno::from(source),
        };
        Self {
            errno,
            text: error.to_string(),
        }
    }
}

impl Answerer {
    /// Serves a request. Blocks.
    pub(super) fn answer(&self, to: ReplyTo, command: Command) -> Reply {
        self.serve(to, command).unwrap_or_else(|refusal| {
            tracing::debug!(cookie = %to.cookie, errno = %refusal.errno, refusal.text, "request failed");
            self.error(to, refusal.errno, refusal.text)
        })
    }

    /// An error as a whole reply.
    pub(super) fn error(&self, to: ReplyTo, errno: Errno, text: impl Into<String>) -> Reply {
        let mut head = BytesMut::new();
        self.encoder.error(to, errno, &ErrorText::new(text), &mut head);
        vec![head.freeze()]
    }

    fn success(&self, to: ReplyTo) -> Reply {
        let mut head = BytesMut::new();
        self.encoder.success(to, &mut head);
        vec![head.freeze()]
    }

    fn serve(&self, to: ReplyTo, command: Command) -> Result<Reply, Refusal> {
        // The session has held every range against the size, so `None` is a range of no bytes: nothing to do.
        match command {
            Command::Read {
                offset,
                length,
                dont_fragment,
            } => {
                if let Some(range) = ByteRange::new(offset, length.into()) {
                    return self.read(to, range, dont_fragment);
                }
            }
            Command::Write { offset, data, fua } => {
                if !data.is_empty() {
                    self.export.write(offset, &data, fua)?;
                }
            }
            Command::Flush => self.export.flush()?,
            Command::Trim { offset, length, fua } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    self.export.trim(range, fua)?;
                }
            }
            Command::Cache { offset, length } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    self.export.cache(range)?;
                }
            }
            Command::WriteZeroes {
                offset,
                length,
                fua,
                no_hole,
                // FAST_ZERO is never offered, and so never asked for.
                fast: _,
            } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    self.export.write_zeroes(range, no_hole, fua)?;
                }
            }
            Command::BlockStatus {
                offset,
                length,
                req_one,
                filter,
            } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    return self.block_status(to, range, req_one, filter.as_deref());
                }
            }
        }
        Ok(self.success(to))
    }

    fn read(&self, to: ReplyTo, range: ByteRange, whole: bool) -> Result<Reply, Refusal> {
        let shape = if whole || !self.encoder.has_chunks() {
            ReadShape::Whole
        } else {
            ReadShape::Sparse
        };
        let pieces = self.export.read(range, shape)?;
        let mut reply = Reply::with_capacity(2 * pieces.len());
        let mut head = BytesMut::new();
        let count = pieces.len();
        for (n, piece) in pieces.into_iter().enumerate() {
            let done = n + 1 == count;
            match piece {
                Piece::Data { offset, bytes } => {
                    self.encoder
                        .data(to, offset, length_32(bytes.len() as u64), done, &mut head);
                    reply.push(head.split().freeze());
                    reply.push(bytes.into());
                }
                Piece::Zeroes(range) => {
                    self.encoder
                        .hole(to, range.start(), length_32(range.len()), done, &mut head);
                }
            }
        }
        if !head.is_empty() {
            reply.push(head.freeze());
        }
        Ok(reply)
    }

    fn block_status(
        &self,
        to: ReplyTo,
        range: ByteRange,
        req_one: bool,
        filter: Option<&[ContextId]>,
    ) -> Result<Reply, Refusal> {
        let wanted: Vec<Selected> = self
            .selected
            .iter()
            .filter(|context| filter.is_none_or(|ids| ids.contains(&context.id)))
            .copied()
            .collect();
        let indices: Vec<ContextIndex> = wanted.iter().map(|context| context.index).collect();
        let answer = self.export.block_status(range, &indices, req_one)?;
        let query = StatusQuery {
            length: range.len(),
            req_one,
        };
        let mut head = BytesMut::new();
        for (n, (context, status)) in wanted.iter().zip(&answer).enumerate() {
            let done = n + 1 == answer.len();
            self.encoder
                .status(to, context.id, query, &status.descriptors, done, &mut head);
        }
        Ok(vec![head.freeze()])
    }
}

/// Lengths of content chunks: requests are at most 32 MiB long.
fn length_32(length: u64) -> u32 {
    u32::try_from(length).expect("a request has at most 32 MiB")
}
