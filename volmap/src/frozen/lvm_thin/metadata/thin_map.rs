//! The map of one thin device: which data block holds which of its blocks.

use super::details::{DETAILS_SIZE, Details};
use super::limits::TIME_END;
use super::node::NUMBER_SIZE;
use super::source::u64_at;
use super::superblock::Superblock;
use super::tree::{Tree, within};
use super::{BlockSource, MetadataError};

/// A mapping is a number: the data block above the time at which it was made.
const TIME_BITS: u32 = 24;

/// What the pool's table says, which the metadata has to agree with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::frozen::lvm_thin) struct PoolGeometry {
    /// Bytes of a data block.
    pub(in crate::frozen::lvm_thin) data_block_size: u64,
    /// Data blocks that the pool has.
    pub(in crate::frozen::lvm_thin) data_blocks: u64,
}

/// Blocks that follow each other both in the thin device and in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::frozen::lvm_thin) struct Run {
    /// First block of the thin device.
    pub(in crate::frozen::lvm_thin) thin: u64,
    /// First block of the data device.
    pub(in crate::frozen::lvm_thin) data: u64,
    /// Blocks.
    pub(in crate::frozen::lvm_thin) len: u64,
}

/// All mappings of a thin snapshot: runs in order; what lies between them is not mapped, and reads as zeroes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::frozen::lvm_thin) struct ThinMap {
    pub(in crate::frozen::lvm_thin) runs: Vec<Run>,
    /// Sum of all runs.
    pub(in crate::frozen::lvm_thin) mapped_blocks: u64,
}

impl ThinMap {
    /// Reads the map of thin device `device` from the metadata snapshot whose superblock is `root`.
    ///
    /// # Errors
    /// [`MetadataError`]: whatever is not exactly as a pool writes it, and a snapshot that was written to.
    pub(in crate::frozen::lvm_thin) fn read<S: BlockSource + ?Sized>(
        source: &S,
        root: u64,
        device: u64,
        geometry: PoolGeometry,
    ) -> Result<Self, MetadataError> {
        let superblock = superblock(source, root)?;
        if superblock.data_block_size != geometry.data_block_size {
            return Err(MetadataError::DataBlockSize {
                found: superblock.data_block_size,
                expected: geometry.data_block_size,
            });
        }
        let no_device = || MetadataError::NoDevice { device };
        let details = Tree::new(source, superblock.details_root, DETAILS_SIZE).find(device)?;
        let details = Details::parse(&details.ok_or_else(no_device)?);
        if details.created >= TIME_END {
            return Err(MetadataError::TimesUsedUp {
                time: details.created,
            });
        }
        let mappings = Tree::new(source, superblock.mapping_root, NUMBER_SIZE).find(device)?;
        let mappings = u64_at(&mappings.ok_or_else(no_device)?, 0);
        Self::walk(source, mappings, details, geometry.data_blocks)
    }

    fn walk<S: BlockSource + ?Sized>(
        source: &S,
        root: u64,
        details: Details,
        data_blocks: u64,
    ) -> Result<Self, MetadataError> {
        let leaves = Tree::new(source, root, NUMBER_SIZE).leaves(|leaf| {
            let mut part = Self::default();
            for entry in leaf.entries() {
                let (thin, packed) = (leaf.key(entry), leaf.number(entry));
                let (data, time) = (packed >> TIME_BITS, packed & (u64::from(TIME_END) - 1));
                if data >= data_blocks {
                    return Err(MetadataError::DataOutside { thin, data });
                }
                if time >= u64::from(details.created) {
                    return Err(MetadataError::Written { thin });
                }
                part.append(Run { thin, data, len: 1 });
            }
            Ok(part)
        })?;
        let mut map = Self::default();
        map.runs.reserve(leaves.iter().map(|part| part.runs.len()).sum());
        for run in leaves.into_iter().flat_map(|part| part.runs) {
            map.append(run);
        }
        if map.mapped_blocks != details.mapped_blocks {
            return Err(MetadataError::Count {
                found: map.mapped_blocks,
                told: details.mapped_blocks,
            });
        }
        map.runs.shrink_to_fit();
        Ok(map)
    }

    /// A run behind all others.
    fn append(&mut self, run: Run) {
        self.mapped_blocks += run.len;
        if let Some(last) = self.runs.last_mut()
            && last.thin + last.len == run.thin
            && last.data + last.len == run.data
        {
            last.len += run.len;
        } else {
            self.runs.push(run);
        }
    }
}

fn superblock<S: BlockSource + ?Sized>(source: &S, root: u64) -> Result<Superblock, MetadataError> {
    within(source, &[root])?;
    let mut superblock = Err(MetadataError::Outside { block: root });
    source.show(&[root], &mut |_, bytes| {
        superblock = Superblock::parse(root, bytes);
        Ok(())
    })?;
    superblock
}
