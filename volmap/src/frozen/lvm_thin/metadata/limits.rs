//! Limits on what a pool's metadata may claim, each with its why.

/// Most levels of one tree. A node holds at least 84 entries unless it is the root, so that six levels reach past the 2^40 data blocks
/// that a mapping can name; what is deeper runs in circles.
pub(super) const LEVELS_MAX: usize = 8;

/// Times in mappings have 24 bits. A pool that took more snapshots than that cannot tell any more which blocks are shared.
pub(super) const TIME_END: u32 = 1 << 24;

/// Smallest and largest data block in sectors: 64 KiB and 1 GiB, a multiple of the smallest (dm-thin's own limits).
pub(super) const DATA_BLOCK_SECTORS_MIN: u32 = 128;
/// See [`DATA_BLOCK_SECTORS_MIN`].
pub(super) const DATA_BLOCK_SECTORS_MAX: u32 = 2 << 20;
