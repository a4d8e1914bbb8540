//! How much is in flight, and how often something is tried.

use std::time::Duration;

/// Bytes of leaves with data in one batch. One question confirms a batch, and a question is what a direct backup costs the host: at
/// 8 MiB that is less than a hundredth of what the bytes would cost it. With larger ones a move between read and confirmation costs a longer
/// second read, and what was read is in no cache of the processor any more when it is compressed.
pub(super) const BATCH_DATA: u64 = 8 << 20;

/// Extents in one batch: bounds what a fragmented map makes of one batch.
pub(super) const BATCH_EXTENTS: usize = 8192;

/// Words of a description that are looked at for the disk that they tell of: as many as a host may give (docs/x-volmap.md, "Description").
pub(super) const DISKS_TOLD_MAX: usize = 64;

/// Bytes of the volume in one batch: a zero frame is made of each GiB of a hole, so this is a thousand of them.
pub(super) const BATCH_RANGE: u64 = 1 << 40;

/// Extents that are held for one question about the map: what a batch grows to when every one of its extents is cut up, and
/// some. A host that cuts finer than that is not believed to mean it.
pub(super) const EXTENTS_HELD: usize = 1 << 20;

/// Batches that are mapped ahead of their turn, so that the questions about earlier ones are about them too.
pub(super) const BATCHES_AHEAD: usize = 2;

/// Bytes between two parts that changed, over which they are one batch: a question costs the host more than what it tells of so little.
pub(super) const SMALL_GAP: u64 = 16 << 20;

/// Bytes of the volume in a batch over gaps: a host that stamps every 4 KiB apart tells of no more than [`EXTENTS_HELD`] in it.
pub(super) const GAPPED_RANGE: u64 = 1 << 30;

/// Bytes of the volume about which the map of parts that changed is asked at first. What lies between them is told as well, so it
/// becomes more where little is told of much, and less where it is the other way round.
pub(super) const FIRST_LOOK: u64 = 16 << 20;

/// Extents in an answer that are few, and that are many.
pub(super) const FEW_TOLD: usize = 256;
pub(super) const MANY_TOLD: usize = 1024;

/// Extents of batches ahead that are asked about: of a fragmented map each costs 16 bytes in every answer.
pub(super) const EXTENTS_AHEAD: usize = BATCH_EXTENTS;

/// Batches in flight: fetched or encoded.
pub(super) const BATCHES_IN_FLIGHT: usize = 8;

/// Batches that have a place in memory, plain or encoded, from before their first read until they are written, or in the spool. This is
/// what bounds the memory: 128 MiB, and what [`ENCODERS_MAX`] take. More than are in flight, so that reads go on while the writer syncs.
pub(super) const BATCHES_IN_MEMORY: usize = 2 * BATCHES_IN_FLIGHT;

/// Segments that are encoded at once. Each is in memory plain and encoded meanwhile, beside what the compressor takes; and so many
/// compress more than disks give.
pub(super) const ENCODERS_MAX: usize = 16;

/// Bytes of memory that batches in the spool may take: what says of their frames where they belong. A GiB of the volume
/// takes some 700 KiB where its extents are long, and sixteen times as much where data and holes alternate every 4 KiB.
pub(super) const SPOOL_MEMORY: u64 = 64 << 20;

/// Bytes in which the spool gives room back: no file system that it could be on has larger blocks.
pub(super) const SPOOL_BLOCK: u64 = 64 << 10;

/// Batches that are read at once: the second keeps the disks busy while the last reads of the first come in.
pub(super) const BATCHES_READ_AT_ONCE: usize = 2;

/// Bytes of a piece of a batch that has memory of its own, and is compressed on its own: a data frame.
pub(super) const SEGMENT: u64 = 1 << 20;

/// Longest single read from a LUN: disks reach their full speed from 256 KiB on.
pub(super) const LONGEST_DIRECT_READ: u64 = 1 << 20;

/// Reads that are this long are not joined with others: it gains nothing, and each can be read to where it belongs.
pub(super) const LONG_DIRECT_READ: u64 = 256 << 10;

/// Bytes between two short reads that are read along rather than paid for with a second read: on the disks that were measured a
/// read takes as long as some 64 KiB.
pub(super) const GAP_READ_ALONG: u64 = 32 << 10;

/// Reads of one batch that wait for a LUN: what LUNs have in flight is bounded there.
pub(super) const DIRECT_READS_QUEUED: usize = 32;

/// Longest single NBD read.
pub(super) const LONGEST_NBD_READ: u64 = 1 << 20;

/// NBD reads in flight for one batch.
pub(super) const NBD_READS_IN_FLIGHT: usize = 8;

/// Pieces in which a range is read again through the host where it cannot read the whole: down to a block of most file systems.
pub(super) const SALVAGE_STEPS: [u64; 2] = [64 << 10, 4 << 10];

/// Unreadable bytes after which a job ends that could read nothing else: each block of a dead disk can take long to fail.
pub(super) const UNREADABLE_AT_FIRST: u64 = 1 << 20;

/// Unreadable bytes with which a backup is no backup any more: a disk that has failed, and not a bad stretch of one.
pub(super) const UNREADABLE_MAX: u64 = 1 << 30;

/// Bytes of a sample of the audit: small ones are spread further.
pub(super) const AUDIT_SAMPLE: u64 = 64 << 10;

/// How often a range is read directly before it is read over NBD (law P4: a bounded number of rounds).
pub(super) const DIRECT_ROUNDS: u8 = 3;

/// Bytes of an image after which a checkpoint is due: what a killed job has to do again at most, with [`CHECKPOINT_TIME`].
pub(super) const CHECKPOINT_BYTES: u64 = 1 << 30;

/// Time after which a checkpoint is due, if there is anything to keep.
pub(super) const CHECKPOINT_TIME: Duration = Duration::from_secs(30);

/// How long a writer may take to let go of its output when the job is stopped. One that writes to a pipe that nobody reads
/// never does.
pub(super) const WRITER_STOP: Duration = Duration::from_secs(5);

/// How long a writer may take to put a checkpoint behind what it has, when the job ends in good order.
pub(super) const SETTLE: Duration = Duration::from_secs(60);

/// Longest range of one map request: bounds how old a map gets before it is used.
pub(super) const MAP_WINDOW: u64 = 64 << 30;

/// Time for which a job that read less than it may can catch up: hides that timers are not exact, and is no burst that anybody feels.
pub(super) const THROTTLE_BURST: Duration = Duration::from_millis(100);

/// Longest pause before a read while the host is slow. An answer may have taken as long as a lost connection took to be taken up again,
/// and there is no other until the batch is read.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Longest wait until the limits are looked at again.
pub(super) const LONGEST_THROTTLE_WAIT: Duration = Duration::from_secs(1);
