//! How much memory reads keep, how much is in flight on a LUN, and when a path is given up.

use std::time::Duration;

/// Bytes of the memory of a long read: 1 MiB, and the blocks around it where it does not lie on the grid of blocks.
pub(super) const POOLED_LEN: usize = (1 << 20) + 2 * 4096;

/// Bytes of the memory of a short read, of 64 KiB and the blocks around it. Short ones are copied from at once.
pub(super) const SMALL_LEN: usize = (64 << 10) + 2 * 4096;

/// Bytes, at least, of buffers whose memory comes and goes at once: of long reads what a batch takes. So much is the system's again
/// when it is freed ([`volmap::sys::heap`]).
pub(super) const SLAB_LEN: usize = 8 << 20;

/// Shares of a LUN: [`shares`] of them are taken by a read, so that four long reads or sixteen short ones are in flight. More
/// only adds latency on the disks that were measured.
pub(super) const SHARES: u32 = 16;

/// Shares of reads that are at the paths: as much as is in flight waits for its turn, so that the disk need not.
pub(super) const SHARES_ADMITTED: u32 = 2 * SHARES;

/// Bytes of a read that take one share.
const SHARE_LEN: u64 = 256 << 10;

/// Shares that a read of so many bytes takes.
pub(super) fn shares(len: u64) -> u32 {
    u32::try_from(len / SHARE_LEN)
        .unwrap_or(u32::MAX)
        .clamp(1, SHARES / 4)
}

/// How long a direct read may take, unless the operator says otherwise: longer than a path failover of multipath takes.
pub const DIRECT_READ_DEADLINE: Duration = Duration::from_secs(60);

/// Reads that fail in a row until a path is given up: a disk with a bad stretch has some of them, and a path that only ever
/// fails should not cost every read its time.
pub(super) const FAILURES_IN_A_ROW: u32 = 32;

/// How long is waited before every path is tried once more: a link that was reset is back by then.
pub(super) const SECOND_TRY_WAIT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_takes_its_share_and_never_all() {
        for (len, expected) in [
            (1, 1),
            (SHARE_LEN, 1),
            (2 * SHARE_LEN - 1, 1),
            (2 * SHARE_LEN, 2),
            (1 << 20, 4),
            (1 << 30, 4),
        ] {
            assert_eq!(shares(len), expected, "{len}");
        }
    }
}
