//! btrfs: FIEMAP gives addresses of the file system, and the chunk tree says on which devices these lie.
//!
//! What moves extents moves them with the lease and the change time intact: balance, reclaim and removal of a device, replacement of one,
//! defragmentation. Each leaves its trace in a tree before the old place can be used again, and trees are asked for what is newer than
//! the transaction that was committed before the map was taken. So nothing that happened is missed, however long nobody looked.
//!
//! Invariants:
//!
//! * an address of FIEMAP is never an offset on a device;
//! * what is overwritten moves, so only files that nobody writes to are followed (`Layers::map_still`);
//! * what is on several mirrors is read from a device that never failed to take a write, or not directly.

mod chunk;
mod ground;
mod trace;

pub(crate) use ground::Relocations;
pub(super) use ground::{Ground, GroundRefusal};
pub(super) use trace::Trace;
