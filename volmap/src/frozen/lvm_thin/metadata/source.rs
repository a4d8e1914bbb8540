//! Where blocks of metadata come from, and how numbers lie in them.

use super::MetadataError;

/// Bytes of a block of metadata. The kernel knows no other size.
pub(in crate::frozen::lvm_thin) const BLOCK_SIZE: usize = 4096;

/// A device, or a part of memory, that holds metadata blocks.
pub(in crate::frozen::lvm_thin) trait BlockSource {
    /// Blocks that it has.
    fn blocks(&self) -> u64;

    /// Shows blocks below [`blocks`](Self::blocks) one after the other, each with its position in the list. They are given in rising
    /// order, so that neighbours can be read together.
    ///
    /// # Errors
    /// [`MetadataError::Read`], and what `see` says.
    fn show(&self, blocks: &[u64], see: &mut See<'_>) -> Result<(), MetadataError>;
}

/// Looks at a block of [`BLOCK_SIZE`] bytes.
pub(in crate::frozen::lvm_thin) type See<'a> = dyn FnMut(usize, &[u8]) -> Result<(), MetadataError> + 'a;

/// A little-endian number at a place that the caller knows to lie within the block.
pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(chunk(block, at))
}

/// See [`u32_at`].
pub(super) fn u64_at(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(chunk(block, at))
}

fn chunk<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&block[at..at + N]);
    number
}
