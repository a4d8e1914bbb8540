//! Reading from a LUN past every cache, and knowing that it is the right LUN.
//!
//! Invariants: a LUN is opened read-only and nothing is ever written to it; only whole blocks are read, and only the bytes
//! that were asked for leave this room.

mod backing;
mod identity;
mod lun;

pub use backing::lies_on;
pub use identity::own_identity;
pub use lun::{DirectOpener, Lun, LunBytes, LunOpener, LunReader, NoDirectIo, ReadMeanwhile};
