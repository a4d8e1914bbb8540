//! The image that an incremental one continues, as its reader sees it.

use volmap::range::ByteRange;

/// What a parent gives of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lent {
    /// All of them.
    Bytes,
    /// None: they cannot be had, or could not be read when the parent was made.
    Nothing,
    /// None, and nobody wants to know: leaves that hold them are not checked.
    Unchecked,
}

/// The image that an incremental one continues, as far as its reader needs it.
pub trait ParentImage: Send {
    /// Fills `bytes` with those of a range.
    fn lend(&mut self, range: ByteRange, bytes: &mut [u8]) -> Lent;

    /// The hashes of the leaves of a range, which begins on the grid and ends on it or with both volumes; `None` where they cannot be had.
    fn leaves(&mut self, range: ByteRange) -> Option<Vec<blake3::Hash>>;
}
