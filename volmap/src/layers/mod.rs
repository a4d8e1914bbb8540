//! The way down: file → file system → device-mapper, partition, loop → disk.
//!
//! Every layer is asked directly, never through a command: FIEMAP, sysfs, and the ioctls of the device-mapper and of loop devices. A layer
//! that is not understood, or that may put other bytes on the disk than the file holds, ends the chain in [`Below::Opaque`] with a
//! reason that an operator can act on; its bytes then go over NBD. Nothing is guessed.
//!
//! Invariants:
//!
//! * a location is given only for extents whose FIEMAP flags are all known and harmless (`file_extents`);
//! * what a chain was built from is remembered, and [`LayerWitness::check`] reads all of it again; one difference, and the mapping is
//!   lost for good;
//! * a map of a file holds only under a lease, or with `+i`: that is the caller's part (FIEMAP is not atomic, and shows no overwrites).
//!
//! [`Below::Opaque`]: crate::store::Below::Opaque

mod block_chain;
mod btrfs;
mod declared;
mod designators;
mod device_walk;
mod disk_identity;
mod dm_table;
mod file_extents;
mod file_system;
mod mapping;
mod mount_info;
mod sysfs;
mod witness;

pub(crate) use block_chain::segments_within;
pub(crate) use btrfs::Relocations;
pub(crate) use file_extents::{FileExtents, Located, located as file_extents};
pub use mapping::{Layers, Mapping, VolumeKind};
pub use mount_info::{MountedFileSystem, mount_at};
pub(crate) use mount_info::{file_system_on, mounts_of};
pub use witness::LayerWitness;
