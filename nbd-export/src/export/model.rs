//! The trait of exports and its vocabulary.

use std::io;

use volmap::frozen::FrozenError;
use volmap::range::ByteRange;
use volmap::storage::Zeroing;

use super::pieces::Pieces;
use crate::proto::{BlockSizes, Descriptor};

/// The standard context that tells data from holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// What an export says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Whether it takes WRITE, TRIM and WRITE_ZEROES.
    pub writable: bool,
    /// Whether it tells at once where zeroing would be no faster than writing.
    pub fast_zero: bool,
    /// Block size constraints.
    pub block: BlockSizes,
    /// Text for NBD_INFO_DESCRIPTION, machine-readable where docs/x-volmap.md says so.
    pub description: String,
}

/// A metadata context that an export offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Context {
    /// Its name, at most 4096 bytes.
    pub name: String,
    /// Whether its status takes 64 bits, so that it is offered only under extended headers.
    pub extended: bool,
}

/// Position of a context in [`Export::contexts`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContextIndex(pub usize);

/// The answer of one context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextStatus {
    /// The context.
    pub context: ContextIndex,
    /// From the start of the request on, without gaps, neighbours of equal meaning joined.
    pub descriptors: Vec<Descriptor>,
}

/// The answer to a block status request: all contexts from the same state, all covering the same bytes (or the first
/// descriptor of each alone, where one was asked for).
pub type BlockStatus = Vec<ContextStatus>;

/// Whether zeroes may come as [`Piece::Zeroes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadShape {
    /// One piece of data for the whole range.
    Whole,
    /// Zeroes as ranges.
    Sparse,
}

/// Why an export did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The frozen image behind it is gone, for good (law H6).
    #[error("{0}")]
    Gone(String),
    /// It takes no changes.
    #[error("this export is read-only")]
    ReadOnly,
    /// It does not know this request, or not this context.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// Zeroes that were to be fast would not be; nothing was changed.
    #[error("zeroing here is not faster than writing")]
    NotFast,
    /// The store below failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ExportError {
    /// Why zeroes could not be written.
    pub(super) fn of_zeroing(error: io::Error, how: Zeroing) -> Self {
        match error.kind() {
            io::ErrorKind::Unsupported if how.fast => Self::NotFast,
            _ => Self::Io(error),
        }
    }
}

impl From<FrozenError> for ExportError {
    fn from(error: FrozenError) -> Self {
        match error {
            FrozenError::Gone(_) => Self::Gone(error.to_string()),
            FrozenError::Io(source) => Self::Io(source),
        }
    }
}

/// Something that is served as an NBD export. Calls block; any number run at once.
///
/// Ranges lie within the size. An error leaves nothing to be used of the answer.
pub trait Export: Send + Sync {
    /// What it says of itself; the same for its whole life.
    fn info(&self) -> ExportInfo;

    /// Whether it takes changes, as [`info`](Self::info) says: asked for each export whenever a client looks for one.
    fn writable(&self) -> bool {
        self.info().writable
    }

    /// The metadata contexts that it offers. A position is that of the same context for its whole life; more may come behind.
    fn contexts(&self) -> Vec<Context>;

    /// Puts the bytes of `range` into `out`, in order and without gaps.
    ///
    /// # Errors
    /// [`ExportError::Gone`] or [`ExportError::Io`].
    fn read(&self, range: ByteRange, shape: ReadShape, out: &mut Pieces) -> Result<(), ExportError>;

    /// As [`read`](Self::read), if that needs no wait for a device or for somebody else; `false`, and nothing of use in `out`, if
    /// it would.
    ///
    /// # Errors
    /// As `read`.
    fn read_at_once(
        &self,
        range: ByteRange,
        shape: ReadShape,
        out: &mut Pieces,
    ) -> Result<bool, ExportError> {
        let _ = (range, shape, out);
        Ok(false)
    }

    /// Whether it is there at all: asked for requests of no bytes, whose answer would not tell.
    ///
    /// # Errors
    /// [`ExportError::Gone`].
    fn standing(&self) -> Result<(), ExportError> {
        Ok(())
    }

    /// Whether [`block_status`](Self::block_status) never waits, nor [`flush`](Self::flush).
    fn answers_at_once(&self) -> bool {
        false
    }

    /// The status of `range` in each of the selected contexts, in the order given: all of it, or a first part of it. With
    /// `one`, a single descriptor for each.
    ///
    /// # Errors
    /// [`ExportError::Gone`] or [`ExportError::Io`].
    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        one: bool,
    ) -> Result<BlockStatus, ExportError>;

    /// Asks that `range` be ready in a cache; nothing comes of it but speed.
    ///
    /// # Errors
    /// [`ExportError::Gone`] or [`ExportError::Io`].
    fn cache(&self, range: ByteRange) -> Result<(), ExportError>;

    /// Makes every write that has completed, on any connection, durable.
    ///
    /// # Errors
    /// [`ExportError::Gone`] or [`ExportError::Io`].
    fn flush(&self) -> Result<(), ExportError>;

    /// Writes `data` from `offset` on; durably with `fua`.
    ///
    /// # Errors
    /// [`ExportError::ReadOnly`] or [`ExportError::Io`].
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ExportError> {
        let _ = (offset, data, fua);
        Err(ExportError::ReadOnly)
    }

    /// Gives `range` back; what it reads as afterwards is not defined.
    ///
    /// # Errors
    /// [`ExportError::ReadOnly`] or [`ExportError::Io`].
    fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        let _ = (range, fua);
        Err(ExportError::ReadOnly)
    }

    /// Makes `range` read as zeroes.
    ///
    /// # Errors
    /// [`ExportError::ReadOnly`], [`ExportError::NotFast`] or [`ExportError::Io`].
    fn write_zeroes(&self, range: ByteRange, how: Zeroing, fua: bool) -> Result<(), ExportError> {
        let _ = (range, how, fua);
        Err(ExportError::ReadOnly)
    }
}
