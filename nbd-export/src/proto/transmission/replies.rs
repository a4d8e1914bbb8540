//! The server's side of replies: encoded as the session negotiated them.

use bytes::{BufMut, BytesMut};

use super::rules::RuleBroken;
use crate::proto::constants::ChunkCode;
use crate::proto::context::ContextId;
use crate::proto::errno::Errno;
use crate::proto::flags::ReplyFlags;
use crate::proto::limits::{COMPACT_EXTENT_CLAMP, MAX_DESCRIPTORS};
use crate::proto::reply::{ChunkHeader, Descriptor, encode_simple, status_layout};
use crate::proto::request::ReplyTo;
use crate::proto::session::{HeaderStyle, Negotiated};
use crate::proto::text::ErrorText;

/// What of a BLOCK_STATUS bounds its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusQuery {
    /// Bytes that were asked for.
    pub length: u64,
    /// One extent, not longer than `length`.
    pub req_one: bool,
}

/// Encodes replies. A reply is one call of [`data`](Self::data), [`success`](Self::success) or
/// [`error`](Self::error); or, where the session has chunks, any number of calls whose last is `done`.
#[derive(Clone, Copy, Debug)]
pub struct ReplyEncoder {
    style: HeaderStyle,
    maximum: u32,
}

impl ReplyEncoder {
    /// The encoder of a session.
    pub fn new(session: &Negotiated) -> Self {
        Self {
            style: session.style,
            maximum: session.export.block.payload_limit(),
        }
    }

    /// Whether replies come in chunks, so that a READ can be answered with holes and in pieces.
    pub fn has_chunks(&self) -> bool {
        self.style != HeaderStyle::Simple
    }

    /// Appends what precedes `length` bytes of data at `offset`; the caller sends exactly these bytes next. In a
    /// session of simple replies this is the whole reply: `offset` and `length` are those of the request.
    ///
    /// The bytes must be known to be good when this is called: a chunk that has begun cannot be taken back.
    ///
    /// # Panics
    /// No bytes in a chunk: a READ of length 0 is answered with [`success`](Self::success).
    pub fn data(&self, to: ReplyTo, offset: u64, length: u32, done: bool, out: &mut BytesMut) {
        if self.style == HeaderStyle::Simple {
            assert!(done, "a simple reply is whole");
            encode_simple(None, to.cookie, out);
            return;
        }
        assert_ne!(length, 0, "a content chunk describes at least one byte");
        self.chunk(to, ChunkCode::OFFSET_DATA, 8 + u64::from(length), done, out);
        out.put_u64(offset);
    }

    /// Appends a chunk that says: `length` zeroes at `offset`.
    ///
    /// # Panics
    /// No bytes, or a session of simple replies, which cannot say this.
    pub fn hole(&self, to: ReplyTo, offset: u64, length: u32, done: bool, out: &mut BytesMut) {
        assert_ne!(length, 0, "a content chunk describes at least one byte");
        self.chunk(to, ChunkCode::OFFSET_HOLE, 12, done, out);
        out.put_u64(offset);
        out.put_u32(length);
    }

    /// Appends the last message of a reply without content of its own.
    pub fn success(&self, to: ReplyTo, out: &mut BytesMut) {
        match self.style {
            HeaderStyle::Simple => encode_simple(None, to.cookie, out),
            HeaderStyle::Structured | HeaderStyle::Extended => {
                self.chunk(to, ChunkCode::NONE, 0, true, out);
            }
        }
    }

    /// Appends an error, which ends the reply. The text is for the client's user; simple replies cannot carry it.
    pub fn error(&self, to: ReplyTo, errno: Errno, text: &ErrorText, out: &mut BytesMut) {
        self.failure(to, errno, text, None, out);
    }

    /// Appends the error that a request gets which breaks a rule: with the offset at which it fails, if the rule tells one.
    pub fn refusal(&self, to: ReplyTo, rule: RuleBroken, out: &mut BytesMut) {
        let text = ErrorText::new(rule.to_string());
        self.failure(to, rule.errno(), &text, rule.failed_at(), out);
    }

    fn failure(&self, to: ReplyTo, errno: Errno, text: &ErrorText, at: Option<u64>, out: &mut BytesMut) {
        if self.style == HeaderStyle::Simple {
            encode_simple(Some(errno), to.cookie, out);
            return;
        }
        let text = text.as_str().as_bytes();
        let (code, fixed) = match at {
            Some(_) => (ChunkCode::ERROR_OFFSET, 14),
            None => (ChunkCode::ERROR, 6),
        };
        self.chunk(to, code, fixed + text.len() as u64, true, out);
        out.put_u32(errno.to_wire());
        out.put_u16(u16::try_from(text.len()).expect("at most 4096 bytes"));
        out.put_slice(text);
        if let Some(offset) = at {
            out.put_u64(offset);
        }
    }

    /// Appends the status chunk of one context and gives the number of bytes it describes. `descriptors` are
    /// consecutive from the queried offset; what the query, the style and [`MAX_DESCRIPTORS`] do not allow is cut
    /// off their end. Neighbours are not joined, because for some contexts equal status does not mean the same.
    ///
    /// # Panics
    /// No descriptor, one of length 0, or a status that the style cannot hold: the export's fault.
    pub fn status(
        &self,
        to: ReplyTo,
        context: ContextId,
        query: StatusQuery,
        descriptors: &[Descriptor],
        done: bool,
        out: &mut BytesMut,
    ) -> u64 {
        let (code, extended) = match self.style {
            HeaderStyle::Extended => (ChunkCode::BLOCK_STATUS_EXT, true),
            HeaderStyle::Simple | HeaderStyle::Structured => (ChunkCode::BLOCK_STATUS, false),
        };
        let (fixed, each) = status_layout(code);
        let most = usize::try_from(u64::from(self.maximum) / each).unwrap_or(MAX_DESCRIPTORS);
        let (count, last, covered) = fit(query, descriptors, most.min(MAX_DESCRIPTORS), extended);
        let length = fixed + each * count as u64;
        self.chunk(to, code, length, done, out);
        out.reserve(usize::try_from(length).unwrap_or(0));
        out.put_u32(context.0);
        if extended {
            out.put_u32(u32::try_from(count).expect("at most 2^20 descriptors"));
        }
        for (n, descriptor) in descriptors[..count].iter().enumerate() {
            let length = if n + 1 == count { last } else { descriptor.length };
            assert_ne!(length, 0, "an extent has at least one byte");
            if extended {
                out.put_u64(length);
                out.put_u64(descriptor.status);
            } else {
                out.put_u32(u32::try_from(length).expect("cut to 32 bits"));
                out.put_u32(u32::try_from(descriptor.status).expect("a status of 32 bits"));
            }
        }
        covered
    }

    fn chunk(&self, to: ReplyTo, chunk: ChunkCode, length: u64, done: bool, out: &mut BytesMut) {
        assert_ne!(self.style, HeaderStyle::Simple, "a chunk was not negotiated");
        ChunkHeader {
            flags: if done { ReplyFlags::DONE } else { ReplyFlags::NONE },
            chunk,
            cookie: to.cookie,
            offset: (self.style == HeaderStyle::Extended).then_some(to.offset),
            length,
        }
        .encode(out);
    }
}

/// How many of `descriptors` may be sent, the length of the last of them, and the bytes that they cover: "the sum
/// of the length fields of the first N-1 extents MUST be less than the requested length".
fn fit(query: StatusQuery, descriptors: &[Descriptor], most: usize, extended: bool) -> (usize, u64, u64) {
    let mut before = 0;
    for (n, descriptor) in descriptors.iter().enumerate() {
        let mut length = descriptor.length;
        if query.req_one {
            length = length.min(query.length);
        }
        // A cut extent must be the last: what follows it would be misplaced.
        let cut = !extended && length > u64::from(u32::MAX);
        if cut {
            length = COMPACT_EXTENT_CLAMP;
        }
        let covered = u64::saturating_add(before, length);
        if cut || query.req_one || covered >= query.length || n + 1 == most || n + 1 == descriptors.len() {
            return (n + 1, length, covered);
        }
        before = covered;
    }
    panic!("a status reply has at least one extent");
}
