//! Reading a thin pool's metadata: what the kernel's persistent-data library wrote, one 4 KiB block at a time.
//!
//! No device, no clock, no thread here: blocks come from a [`BlockSource`], a [`ThinMap`] comes out. The room knows the superblock, the
//! details of a device, and the two levels of the mapping tree; everything else of the format (space maps, the log of a transaction) is
//! of no use to a reader of a *metadata snapshot*, whose blocks the pool keeps as they are.
//!
//! Invariants:
//!
//! * a block counts only with its checksum, and only at the place that it says it is for;
//! * keys rise strictly and stay within what the node above promised, so that no walk runs in circles or tells a block twice;
//! * the pool's own count of mapped blocks has to come out, or there is no map: a wrong map is worse than none;
//! * a mapping that is not older than the snapshot was written *after* it, so the snapshot is not what was frozen.

mod checksum;
mod details;
mod error;
mod limits;
mod node;
mod source;
mod superblock;
mod thin_map;
mod tree;

pub(super) use error::MetadataError;
pub(super) use source::{BLOCK_SIZE, BlockSource, See};
pub(super) use thin_map::{PoolGeometry, Run, ThinMap};

#[cfg(test)]
mod tests;
