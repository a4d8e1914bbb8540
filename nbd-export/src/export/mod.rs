//! What the server serves: the narrow trait [`Export`], and what stands behind it.
//!
//! Invariants:
//!
//! * an [`Export`] is called only with ranges within its size; the session has checked them;
//! * every call samples its state after it was called, so an answer is never older than the request (law H4);
//! * [`ExportError::Gone`] is for good, and every connection sees it (law H6);
//! * `x_volmap` is the only module that knows both vocabularies, extents and NBD metadata contexts
//!   (docs/x-volmap.md).

mod description;
mod frozen;
pub mod limits;
mod live;
mod model;
mod origin;
mod pieces;
#[cfg(test)]
pub(crate) mod scripted;
mod set;
mod tag;
mod writable;
mod x_volmap;

pub(crate) use description::words;
pub use description::{Circumstances, SetMembership};
pub use frozen::FrozenExport;
pub use model::{
    BASE_ALLOCATION, BlockStatus, Context, ContextIndex, ContextStatus, Export, ExportError, ExportInfo,
    ReadShape,
};
pub use origin::OriginExport;
pub use pieces::{Buffer, Piece, Pieces};
pub use set::SetExport;
pub use tag::TagExport;
pub use writable::WritableExport;
pub use x_volmap::Parent;
