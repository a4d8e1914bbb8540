//! The backup image: one pass, frames in volume order, and a Zstandard file as it stands (docs/image-format.md).
//!
//! Sans-IO: nothing here knows a file, a socket, a clock or a thread. [`compress_piece`] is pure and runs on as many
//! processors as there are; [`Encoder`] puts its pieces in order; [`Decoder`] takes bytes and gives them back, checked.
//!
//! Invariants:
//! * records tile the volume, data and zero frames tile it too, and begin on the grid of 64 KiB leaves;
//! * everything in the file is covered by a BLAKE3 that is checked: ours by their own, keyed with the header's; data frames by
//!   RECORDS; the seek table by END; and the file ends exactly behind it;
//! * the root depends on the volume alone.

mod checkpoint;
mod decoder;
mod encoder;
mod end;
mod error;
mod frame;
mod group;
mod hash;
mod header;
mod layout;
pub mod limits;
mod outline;
mod parent;
mod piece;
mod random_access;
mod record;
mod resumption;
mod seek_table;
mod zero;

pub use checkpoint::Checkpoint;
pub use decoder::{Decoder, Event};
pub use encoder::Encoder;
pub use end::{End, Tally, Totals};
pub use error::{Count, FrameName, ImageError, RecordsRule};
pub use hash::Root;
pub use header::{Header, JobRecord, LunProof, LunRecord, ParentRecord, StoreRecord};
pub(crate) use layout::part_of;
pub use layout::{BLOCK, LEAF};
pub use outline::{FOOTER, HEADER_FRAME_MAX, Outline, TableCheck, header_of};
pub use parent::{Lent, ParentImage};
pub use piece::{Content, DEFAULT_LEVEL, EncodedPiece, compress_piece};
pub use random_access::{FramePlace, GroupPlace, Holds, OpenGroup, RECORDS_FRAME_MAX, RootOfLeaves};
pub use record::{Kind, Receipt, Record, Transport};
pub use resumption::{Found, Resumption, UnfinishedImage, WholeImage};
pub use zero::is_zero;

#[cfg(test)]
mod tests;
