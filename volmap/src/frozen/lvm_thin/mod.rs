//! `lvm-thin`: a read-only snapshot of a thin logical volume, made for the frozen image and removed with it.
//!
//! A thin snapshot shares its blocks with its origin, and whoever writes to the origin from then on gets new ones. So nothing moves, and
//! the map is read once, from the trees in the pool's metadata, through a metadata snapshot of the pool:
//!
//! * a mapping counts only if it is older than the snapshot, and only if the count of all of them comes out; what is not mapped is a
//!   hole, because the kernel reads it as zeroes (not where the volume has an external origin: such a one is not mapped);
//! * the witness of the content: the snapshot is read-only, has the table that it had, and the kernel has not counted a single write to
//!   its device. A count cannot be set back, which a read-only flag can;
//! * the witness of the mapping: tables of thin volume, pool and all layers below, no event of the device-mapper, and a pool that is not
//!   in trouble. After an event everything is looked up again, the map included; where all is as it was it goes on under a new
//!   generation;
//! * the device is held open, so that neither its number nor its place in the pool can be given to another.

mod create;
mod image;
mod kernel;
mod left_metadata_snapshot;
mod locate;
mod metadata;
mod metadata_device;
mod metadata_snapshot;
mod no_survey;
mod pool;
mod pool_file;
mod pool_record;
pub(crate) mod room;
mod target;
mod write_counter;

pub(crate) use create::{finish, fits, prepare};
pub(crate) use left_metadata_snapshot::LeftMetadataSnapshot;
pub(crate) use pool_file::PoolFiles;

/// Name of the provider.
pub(crate) const METHOD: &str = "lvm-thin";
