//! What a copy reads.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use volmap::range::ByteRange;

use crate::error::Result;

/// A part of a source.
pub(crate) struct Piece {
    /// Where it lies.
    pub(crate) range: ByteRange,
    /// What it holds.
    pub(crate) content: Content,
}

/// What a piece holds.
pub(crate) enum Content {
    /// Zeroes.
    Zero,
    /// These bytes.
    Bytes(Bytes),
    /// Bytes that have to be fetched: all of them, or an error.
    Later(BoxFuture<'static, Result<Bytes>>),
}

/// A source. Its pieces come in order, and tile it.
pub(crate) trait Reader: Send {
    /// Its size; `None` for a stream that has not said.
    fn size(&self) -> Option<u64>;

    /// The next piece; `None` at the end, which only a whole and good source has.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>>>;

    /// Goes back: the next pieces are those of `ranges`, which were given before. False where that is not possible.
    fn rewind(&mut self, ranges: Vec<ByteRange>) -> bool;
}
