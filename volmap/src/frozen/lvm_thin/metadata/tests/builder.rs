//! Writes metadata as the kernel would, and as it never would.

use super::super::checksum::crc32c;
use super::super::{BLOCK_SIZE, BlockSource, MetadataError, See};

const SUPERBLOCK_XOR: u32 = 160_774;
const NODE_XOR: u32 = 121_107;

/// Metadata in memory.
#[derive(Clone, Debug)]
pub(super) struct Memory(pub(super) Vec<u8>);

impl BlockSource for Memory {
    fn blocks(&self) -> u64 {
        (self.0.len() / BLOCK_SIZE) as u64
    }

    fn show(&self, blocks: &[u64], see: &mut See<'_>) -> Result<(), MetadataError> {
        assert!(blocks.is_sorted());
        for (nth, &block) in blocks.iter().enumerate() {
            let start = usize::try_from(block).unwrap() * BLOCK_SIZE;
            see(nth, &self.0[start..start + BLOCK_SIZE])?;
        }
        Ok(())
    }
}

impl Memory {
    pub(super) fn block_mut(&mut self, block: u64) -> &mut [u8] {
        let start = usize::try_from(block).unwrap() * BLOCK_SIZE;
        &mut self.0[start..start + BLOCK_SIZE]
    }

    /// Makes the checksum of a changed block right: of the superblock (block 0), or of a node.
    pub(super) fn seal(&mut self, block: u64) {
        let xor = if block == 0 { SUPERBLOCK_XOR } else { NODE_XOR };
        let bytes = self.block_mut(block);
        let sum = crc32c(&bytes[4..]) ^ xor;
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// A thin device to be written.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) id: u64,
    pub(super) created: u32,
    /// Thin block, data block, time.
    pub(super) mappings: Vec<(u64, u64, u64)>,
}

/// Blocks, one behind the other. Block 0 is kept for the superblock.
#[derive(Debug)]
pub(super) struct Builder {
    blocks: Memory,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            blocks: Memory(vec![0; BLOCK_SIZE]),
        }
    }

    /// Metadata with these devices and data blocks of 64 KiB, trees as flat as they get.
    pub(super) fn metadata(devices: &[Device]) -> Memory {
        let mut builder = Self::new();
        let (mut roots, mut details) = (Vec::new(), Vec::new());
        for device in devices {
            let entries: Vec<(u64, Vec<u8>)> = (device.mappings.iter())
                .map(|&(thin, data, time)| (thin, (data << 24 | time).to_le_bytes().to_vec()))
                .collect();
            let root = builder.tree(8, &entries);
            roots.push((device.id, root.to_le_bytes().to_vec()));
            let mut value = (device.mappings.len() as u64).to_le_bytes().to_vec();
            value.extend(1u64.to_le_bytes());
            value.extend(device.created.to_le_bytes());
            value.extend(device.created.to_le_bytes());
            details.push((device.id, value));
        }
        let (mapping_root, details_root) = (builder.tree(8, &roots), builder.tree(24, &details));
        builder.finish(mapping_root, details_root)
    }

    /// A tree of these entries.
    pub(super) fn tree(&mut self, value_size: usize, entries: &[(u64, Vec<u8>)]) -> u64 {
        let room = |value_size: usize| (BLOCK_SIZE - 32) / (8 + value_size) / 3 * 3;
        if entries.is_empty() {
            return self.node(true, value_size, &[]);
        }
        let mut level: Vec<(u64, Vec<u8>)> = Vec::new();
        for leaf in entries.chunks(room(value_size)) {
            level.push((
                leaf[0].0,
                self.node(true, value_size, leaf).to_le_bytes().to_vec(),
            ));
        }
        while level.len() > 1 {
            let below = std::mem::take(&mut level);
            for inner in below.chunks(room(8)) {
                level.push((inner[0].0, self.node(false, 8, inner).to_le_bytes().to_vec()));
            }
        }
        u64::from_le_bytes(level[0].1.clone().try_into().unwrap())
    }

    /// One node; tells its block.
    pub(super) fn node(&mut self, is_leaf: bool, value_size: usize, entries: &[(u64, Vec<u8>)]) -> u64 {
        let number = self.blocks.blocks();
        let room = (BLOCK_SIZE - 32) / (8 + value_size) / 3 * 3;
        let mut bytes = vec![0; BLOCK_SIZE];
        let word = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
        bytes[4..8].copy_from_slice(&word(if is_leaf { 2 } else { 1 }));
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes[16..20].copy_from_slice(&word(entries.len()));
        bytes[20..24].copy_from_slice(&word(room));
        bytes[24..28].copy_from_slice(&word(value_size));
        for (i, (key, value)) in entries.iter().enumerate() {
            bytes[32 + i * 8..40 + i * 8].copy_from_slice(&key.to_le_bytes());
            let at = 32 + room * 8 + i * value_size;
            bytes[at..at + value_size].copy_from_slice(value);
        }
        self.blocks.0.extend(bytes);
        self.blocks.seal(number);
        number
    }

    /// The superblock over these trees, and all of it.
    pub(super) fn finish(mut self, mapping_root: u64, details_root: u64) -> Memory {
        let bytes = self.blocks.block_mut(0);
        bytes[32..40].copy_from_slice(&27_022_010u64.to_le_bytes());
        bytes[40..44].copy_from_slice(&2u32.to_le_bytes());
        bytes[320..328].copy_from_slice(&mapping_root.to_le_bytes());
        bytes[328..336].copy_from_slice(&details_root.to_le_bytes());
        bytes[336..340].copy_from_slice(&128u32.to_le_bytes());
        bytes[340..344].copy_from_slice(&8u32.to_le_bytes());
        self.blocks.seal(0);
        self.blocks
    }
}
