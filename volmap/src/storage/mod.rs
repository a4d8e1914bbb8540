//! Files and block devices that are ours alone to write: origins, copy areas, tags, live volumes.
//!
//! Invariants:
//!
//! * each is opened once and guarded from then on: a write lease on a file, a claim on a block device, and against
//!   others of our own kind a lock on every file;
//! * the guard is asked anew each time ([`Standing`]), and never says "good" once somebody else may have changed something.

mod aligned;
mod backing;
mod direct_read;
mod error;
mod live_volume;
mod settle;
mod standing;
mod storage_file;
mod write_back;

pub(crate) use aligned::is_aligned;
pub use aligned::{ALIGNMENT, AlignedBuffer};
pub use backing::Backing;
pub(crate) use direct_read::read_direct;
pub use error::StorageError;
pub(crate) use error::at;
pub use live_volume::{LiveVolume, Zeroing};
pub(crate) use settle::{settle_again, settle_all};
pub use standing::Standing;
pub(crate) use storage_file::{Caching, Guard, StorageFile};
pub(crate) use write_back::WriteBack;
