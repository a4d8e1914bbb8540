//! What a pool keeps of each thin device beside its mappings.

use super::source::{u32_at, u64_at};

/// Bytes of `struct disk_device_details`: mapped blocks, a transaction id, the time of creation, the time of the last snapshot.
pub(super) const DETAILS_SIZE: usize = 24;

/// The details of a thin device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Details {
    /// Blocks that it has mapped.
    pub(super) mapped_blocks: u64,
    /// When it was made, counted in snapshots of the pool. What a snapshot shares with its origin is older than this; what is written
    /// to it is not.
    pub(super) created: u32,
}

impl Details {
    /// From [`DETAILS_SIZE`] bytes.
    pub(super) fn parse(value: &[u8]) -> Self {
        Self {
            mapped_blocks: u64_at(value, 0),
            created: u32_at(value, 16),
        }
    }
}
