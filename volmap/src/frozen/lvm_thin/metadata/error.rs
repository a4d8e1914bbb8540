//! Why metadata was not believed.

use std::io;

/// Why there is no map. Never a guess instead.
#[derive(Debug, thiserror::Error)]
pub(in crate::frozen::lvm_thin) enum MetadataError {
    /// The device failed.
    #[error("block {block} cannot be read: {source}")]
    Read {
        /// The block.
        block: u64,
        /// Why.
        source: io::Error,
    },
    /// A block that the device does not have.
    #[error("block {block} lies past the end of the metadata")]
    Outside {
        /// The block.
        block: u64,
    },
    /// Flipped bits, or a block that was overwritten by something else.
    #[error("block {block} has a wrong checksum")]
    Checksum {
        /// The block.
        block: u64,
    },
    /// A good block in a wrong place.
    #[error("block {block} says that it is block {says}")]
    Misplaced {
        /// Where it was found.
        block: u64,
        /// What it says.
        says: u64,
    },
    /// Not thin metadata, or of a version that is not known.
    #[error("its superblock has {what} {found}, which is not known")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// What it says.
        found: u64,
    },
    /// The superblock is not of this pool.
    #[error("its data blocks have {found} bytes, and the pool's have {expected}")]
    DataBlockSize {
        /// In the superblock.
        found: u64,
        /// In the pool's table.
        expected: u64,
    },
    /// A node of a tree that contradicts itself or the node above.
    #[error("block {block} is no node of this tree: {why}")]
    Node {
        /// The block.
        block: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// More levels, or more nodes, than a tree on this device can have.
    #[error("the tree under block {root} has no end")]
    Endless {
        /// Its root.
        root: u64,
    },
    /// Leaves on different levels.
    #[error("the tree under block {root} is not of the same depth everywhere")]
    Uneven {
        /// Its root.
        root: u64,
    },
    /// The pool has no such device.
    #[error("it knows no thin device {device}")]
    NoDevice {
        /// The device's number in the pool.
        device: u64,
    },
    /// A mapping to a data block that the pool does not have.
    #[error("thin block {thin} is said to lie in data block {data}, past the end of the pool")]
    DataOutside {
        /// Block of the thin device.
        thin: u64,
        /// Block of the data device.
        data: u64,
    },
    /// Tree and details contradict each other.
    #[error("{found} blocks are mapped, and {told} should be")]
    Count {
        /// In the tree.
        found: u64,
        /// In the details.
        told: u64,
    },
    /// The device was written to after it was made.
    #[error("thin block {thin} was written after the snapshot was taken")]
    Written {
        /// Block of the thin device.
        thin: u64,
    },
    /// More snapshots than times have bits for.
    #[error("the pool took more snapshots ({time}) than its mappings can tell apart")]
    TimesUsedUp {
        /// The device's time.
        time: u32,
    },
}
