//! Replies: simple ones, and the chunks of structured and extended ones.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::constants::{ChunkCode, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use super::context::ContextId;
use super::errno::Errno;
use super::error::{DecodeError, PeerMisbehaved, ProtocolError};
use super::fields::Fields;
use super::flags::ReplyFlags;
use super::request::Cookie;
use super::session::HeaderStyle;
use super::text::ErrorText;

/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_LEN: usize = 16;

/// The start of any message from a server during transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyHeader {
    /// A simple reply; data follow if it answers a READ with success.
    Simple {
        /// `None` is success.
        error: Option<Errno>,
        /// The request's cookie.
        cookie: Cookie,
    },
    /// A structured or extended chunk.
    Chunk(ChunkHeader),
}

/// The start of a structured or extended chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// Whether this is the last chunk.
    pub flags: ReplyFlags,
    /// What the payload is.
    pub chunk: ChunkCode,
    /// The request's cookie.
    pub cookie: Cookie,
    /// The request's offset; `None` in a structured chunk, which does not say it.
    pub offset: Option<u64>,
    /// Bytes of payload.
    pub length: u64,
}

impl ReplyHeader {
    /// The header at the start of `input`, and its length; `None` while it is not whole.
    ///
    /// # Errors
    /// The magic is wrong, or it is that of a reply which the session did not negotiate.
    pub fn decode(style: HeaderStyle, input: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let mut fields = Fields::of(input);
        let Ok(magic) = fields.u32() else {
            return Ok(None);
        };
        let len = match (magic, style) {
            (SIMPLE_REPLY_MAGIC, HeaderStyle::Simple | HeaderStyle::Structured) => SIMPLE_REPLY_LEN,
            (STRUCTURED_REPLY_MAGIC, HeaderStyle::Structured)
            | (EXTENDED_REPLY_MAGIC, HeaderStyle::Extended) => style.chunk_header_len(),
            (SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC, _) => {
                return Err(PeerMisbehaved::ReplyNotNegotiated.into());
            }
            (found, _) => return Err(DecodeError::BadMagic { found: found.into() }.into()),
        };
        if input.len() < len {
            return Ok(None);
        }
        let header = if magic == SIMPLE_REPLY_MAGIC {
            let error = fields.u32()?;
            Self::Simple {
                error: (error != 0).then(|| Errno::from_wire(error)),
                cookie: Cookie(fields.u64()?),
            }
        } else {
            let (flags, chunk) = (ReplyFlags::from_wire(fields.u16()?), ChunkCode(fields.u16()?));
            let cookie = Cookie(fields.u64()?);
            let (offset, length) = match style {
                HeaderStyle::Extended => (Some(fields.u64()?), fields.u64()?),
                HeaderStyle::Simple | HeaderStyle::Structured => (None, fields.u32()?.into()),
            };
            Self::Chunk(ChunkHeader {
                flags,
                chunk,
                cookie,
                offset,
                length,
            })
        };
        Ok(Some((header, len)))
    }
}

/// Appends the header of a simple reply.
pub fn encode_simple(error: Option<Errno>, cookie: Cookie, out: &mut BytesMut) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error.map_or(0, Errno::to_wire));
    out.put_u64(cookie.0);
}

impl ChunkHeader {
    /// Appends the header: extended if it says an offset, structured if not.
    ///
    /// # Panics
    /// A structured chunk of more than 4 GiB: no encoder here makes one.
    pub fn encode(&self, out: &mut BytesMut) {
        let style = match self.offset {
            Some(_) => HeaderStyle::Extended,
            None => HeaderStyle::Structured,
        };
        out.put_u32(style.chunk_magic());
        out.put_u16(self.flags.to_wire());
        out.put_u16(self.chunk.0);
        out.put_u64(self.cookie.0);
        match self.offset {
            Some(offset) => {
                out.put_u64(offset);
                out.put_u64(self.length);
            }
            None => out.put_u32(u32::try_from(self.length).expect("a structured chunk below 4 GiB")),
        }
    }
}

/// One extent of a block status reply, 32 and 64 bit alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Descriptor {
    /// Bytes, never 0.
    pub length: u64,
    /// What the context says of them.
    pub status: u64,
}

/// The payload of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// Nothing.
    None,
    /// Data.
    Data {
        /// Where in the export.
        offset: u64,
        /// The bytes, at least one.
        data: Bytes,
    },
    /// Zeroes.
    Hole {
        /// Where in the export.
        offset: u64,
        /// How many, at least one.
        length: u32,
    },
    /// Status of one context, from the offset of the request on.
    Status {
        /// The context.
        context: ContextId,
        /// Consecutive extents, at least one.
        descriptors: Vec<Descriptor>,
    },
    /// A failure, of a known kind or not.
    Error {
        /// The error.
        errno: Errno,
        /// What the server says to it.
        text: ErrorText,
        /// Where, if the server says so.
        offset: Option<u64>,
    },
}

/// Bytes of the fixed part of a status chunk and of one descriptor.
pub(super) const fn status_layout(chunk: ChunkCode) -> (u64, u64) {
    match chunk {
        ChunkCode::BLOCK_STATUS_EXT => (8, 16),
        _ => (4, 8),
    }
}

impl Chunk {
    /// The payload of a chunk of type `code`, which the session may have.
    ///
    /// # Errors
    /// The payload does not fit the type, or the type is unknown and no error.
    pub fn decode(code: ChunkCode, mut payload: Bytes) -> Result<Self, ProtocolError> {
        let length = payload.len() as u64;
        let bad_length = || PeerMisbehaved::BadChunkLength { chunk: code, length };
        match code {
            ChunkCode::NONE if length == 0 => Ok(Self::None),
            ChunkCode::OFFSET_DATA if length > 8 => Ok(Self::Data {
                offset: payload.get_u64(),
                data: payload,
            }),
            ChunkCode::OFFSET_HOLE if length == 12 => {
                let (offset, length) = (payload.get_u64(), payload.get_u32());
                if length == 0 {
                    return Err(PeerMisbehaved::ContentOutsideRequest { offset, length: 0 }.into());
                }
                Ok(Self::Hole { offset, length })
            }
            ChunkCode::BLOCK_STATUS | ChunkCode::BLOCK_STATUS_EXT => decode_status(code, &payload),
            ChunkCode::NONE | ChunkCode::OFFSET_DATA | ChunkCode::OFFSET_HOLE => Err(bad_length().into()),
            code if code.is_error() => decode_error(code, &payload),
            code => Err(PeerMisbehaved::UnexpectedChunk(code).into()),
        }
    }
}

fn decode_status(code: ChunkCode, payload: &[u8]) -> Result<Chunk, ProtocolError> {
    let length = payload.len() as u64;
    let (fixed, each) = status_layout(code);
    if length < fixed + each || !(length - fixed).is_multiple_of(each) {
        return Err(PeerMisbehaved::BadChunkLength { chunk: code, length }.into());
    }
    let mut fields = Fields::of(payload);
    let context = ContextId(fields.u32()?);
    let descriptors: Vec<_> = if code == ChunkCode::BLOCK_STATUS_EXT {
        let (announced, found) = (fields.u32()?, (length - fixed) / each);
        if u64::from(announced) != found {
            return Err(PeerMisbehaved::WrongDescriptorCount { announced, found }.into());
        }
        let (pairs, _) = fields.rest().as_chunks::<8>();
        pairs
            .chunks_exact(2)
            .map(|pair| Descriptor {
                length: u64::from_be_bytes(pair[0]),
                status: u64::from_be_bytes(pair[1]),
            })
            .collect()
    } else {
        let (pairs, _) = fields.rest().as_chunks::<4>();
        pairs
            .chunks_exact(2)
            .map(|pair| Descriptor {
                length: u32::from_be_bytes(pair[0]).into(),
                status: u32::from_be_bytes(pair[1]).into(),
            })
            .collect()
    };
    if descriptors.iter().any(|descriptor| descriptor.length == 0) {
        return Err(PeerMisbehaved::EmptyExtent(context).into());
    }
    Ok(Chunk::Status { context, descriptors })
}

/// Known and unknown error chunks begin alike: "all error chunk types begin with the same error, message length
/// and optional message fields".
fn decode_error(code: ChunkCode, payload: &[u8]) -> Result<Chunk, ProtocolError> {
    let length = payload.len() as u64;
    let bad_length = |_| PeerMisbehaved::BadChunkLength { chunk: code, length };
    let mut fields = Fields::of(payload);
    let error = fields.u32().map_err(bad_length)?;
    let text_len = fields.u16().map_err(bad_length)?;
    let text = fields
        .bytes(text_len.into())
        .map_err(|_| PeerMisbehaved::ErrorTextTooLong)?;
    if error == 0 {
        return Err(PeerMisbehaved::ErrorWithoutValue.into());
    }
    let offset = match code {
        ChunkCode::ERROR_OFFSET => Some(fields.u64().map_err(bad_length)?),
        _ => None,
    };
    Ok(Chunk::Error {
        errno: Errno::from_wire(error),
        text: ErrorText::from_wire(text),
        offset,
    })
}
