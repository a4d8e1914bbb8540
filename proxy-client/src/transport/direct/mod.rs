//! Reading from a LUN past every cache, and knowing that it is the right LUN.
//!
//! `open` opens paths to real LUNs, `lun` reads by whichever path works, `lun_path` is one of them with what is thought of it, `threads` have
//! its reads wait for the disk, `memory` is what is read into, `write_guard` keeps this machine from writing to a LUN that is read; `identity` and
//! `backing` tell one disk from another.
//!
//! Invariants: a LUN is opened read-only and nothing is ever written to it; only whole blocks are read, and only the bytes
//! that were asked for leave this room; reads that hang cost their path and a thread each, of which no more are in flight than
//! [`limits`] allow, and never the job.

mod backing;
mod identity;
pub mod limits;
mod lun;
mod lun_path;
mod memory;
mod open;
mod reader;
mod threads;
mod write_guard;

pub use backing::lies_on;
pub use identity::own_identity;
pub use lun::{Lun, LunBytes};
pub use lun_path::LunPath;
pub use memory::{Memory, MemoryPool};
pub use open::{DirectOpener, NoDirectIo};
pub use reader::{Geometry, LunOpener, LunReader, ReadMeanwhile};
pub use threads::ReadThreads;
