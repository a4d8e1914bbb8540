//! How much is in flight, and how often something is tried.

/// Bytes of leaves with data in one batch. Large enough that a confirmation a batch costs nothing (one small request for
/// 8 MiB), small enough that the time between read and confirmation, in which a move costs a second read, stays short.
pub(super) const BATCH_DATA: u64 = 8 << 20;

/// Extents in one batch: bounds what a fragmented map makes of one batch.
pub(super) const BATCH_EXTENTS: usize = 4096;

/// Bytes of the volume in one batch: a zero frame is made of each GiB of a hole, so this is a thousand of them.
pub(super) const BATCH_RANGE: u64 = 1 << 40;

/// Extents that are held for one question about the map: what a batch grows to when every one of its extents is cut up, and
/// some. A host that cuts finer than that is not believed to mean it.
pub(super) const EXTENTS_HELD: usize = 1 << 20;

/// Longest single read from a LUN: disks reach their full speed from 256 KiB on.
pub(super) const LONGEST_DIRECT_READ: u64 = 1 << 20;

/// Reads from LUNs in flight: more only adds latency on the disks that were measured.
pub(super) const DIRECT_READS_IN_FLIGHT: usize = 4;

/// Longest single NBD read.
pub(super) const LONGEST_NBD_READ: u64 = 1 << 20;

/// NBD reads in flight for one batch.
pub(super) const NBD_READS_IN_FLIGHT: usize = 8;

/// Batches in flight: one is read, one is confirmed, the others are compressed.
pub(super) const BATCHES_IN_FLIGHT: usize = 4;

/// How often a range is read directly before it is read over NBD (law P4: a bounded number of rounds).
pub(super) const DIRECT_ROUNDS: u8 = 3;

/// Longest range of one map request: bounds how old a map gets before it is used.
pub(super) const MAP_WINDOW: u64 = 64 << 30;
