//! Limits of the storage side, each with its why.

use std::time::Duration;

/// Bytes that copy-before-write preserves at a time.
///
/// Chosen by measurement (docs/performance.md, "Copy unit"). The same 64 KiB as a leaf of a backup image's hash tree, and a
/// multiple of every block size in use, so that a unit is always fit for `O_DIRECT`. Smaller units cost an extent of the map
/// (and of every block status reply) for each few written bytes; larger ones copy ever more for a 4 KiB write, while that
/// write waits.
pub const COPY_UNIT: u64 = 64 * 1024;

/// Smallest copy unit: the largest logical block size of disks, and what `O_DIRECT` takes everywhere.
pub const COPY_UNIT_MIN: u64 = 4096;

/// Largest copy unit: it is one run already.
pub const COPY_UNIT_MAX: u64 = COPY_RUN;

/// Most bytes that one writer preserves in one go: one read, one durable write, one switch.
///
/// 1 MiB reaches the bandwidth of a disk with a single request; more would only make other writers of the same units
/// wait longer, and each writer holds a buffer of this size.
pub const COPY_RUN: u64 = 1024 * 1024;

/// Bytes at the start of a copy area that hold no old data. Whatever the unit is, slots behind it are aligned for `O_DIRECT`.
pub const COPY_AREA_HEADER: u64 = 64 * 1024;

/// Smallest copy area in bytes: its header and one unit. It serves tests and tiny volumes; anything smaller could not
/// keep a single write.
pub const COPY_AREA_MIN: u64 = COPY_AREA_HEADER + COPY_UNIT;

/// Most frozen images of an origin at a time: each write asks every one of them whether it needs the old data.
pub const FROZEN_IMAGES_MAX: usize = 16;

/// Most freezes since which the changes of an origin are known. Each costs at most a bit for every copy unit (2 MiB for
/// 1 TiB); more than the frozen images there can be, by as many that were thawed and are kept for an incremental.
pub const LINEAGE_MAX: usize = 2 * FROZEN_IMAGES_MAX;

/// How long a writer is held for want of room if nothing else was asked: below the 120 s after which Linux guests report
/// tasks as hung, with some left for what follows.
pub const HOLD_DEFAULT: Duration = Duration::from_secs(60);

/// Longest time that can be asked for; beyond it nobody believes any more that somebody will come and thaw.
pub const HOLD_MAX: Duration = Duration::from_secs(3600);

/// How often a held writer tries again though no frozen image has ended: an error of the copy area may have passed.
pub const HOLD_RETRY: Duration = Duration::from_secs(1);

/// Per cent of a copy area from which on it is reported as filling: the first is early enough to make room by hand, at
/// the second a backup had better end soon.
pub const COPY_AREA_WARNINGS: [u64; 2] = [75, 90];

/// The size of a copy area for which none was asked is a tenth of the origin (a long backup of a busy volume rewrites
/// less than that in most shops), but never less than this: small volumes are rewritten whole in no time.
pub const COPY_AREA_DEFAULT_MIN: u64 = 64 * 1024 * 1024;

/// Times that an origin is synced ahead of a freeze, before writers are held. Each round is as much shorter than the one before as
/// the disk is faster than the writers; where it is not, no number helps.
pub const SYNC_AHEAD_ROUNDS: u32 = 5;

/// A sync this short is one that writers can wait for.
pub const SYNC_AHEAD_ENOUGH: Duration = Duration::from_millis(20);

/// Longest time for which a freeze waits until an origin is synced ahead, and then until its copy area is settled, while writers go on. A disk
/// that hangs is no worse than a slow one until then: it is when Linux begins to report hung tasks, and what was slow goes on and is done when
/// the next freeze comes.
pub const READY_MAX: Duration = Duration::from_secs(120);

/// Bytes at either end of a file or device that are looked at before it becomes a copy area or a tag: what is not zero there
/// belongs to somebody. A MiB holds the marks of file systems (btrfs: at 64 KiB), volume managers and partition tables.
pub const FOREIGN_DATA_PROBE: u64 = 1024 * 1024;

/// Largest tag in bytes. A tag needs a block or two; whatever is larger is somebody's volume, given by mistake.
pub const TAG_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of the block that makes a tag recognisable; also the largest logical block size of disks, so that the bytes behind it
/// lie in blocks of their own.
pub const TAG_BLOCK: u64 = 4096;

/// The size of a tag that is made: the recognisable block and 15 for nonces, so that several proxies can each have one.
pub const TAG_DEFAULT: u64 = 16 * TAG_BLOCK;

/// Time that a command of LVM's has which only asks. It reads the labels of every disk, and waits while another command changes the
/// same volume group.
pub const LVM_QUERY_PATIENCE: Duration = Duration::from_secs(60);

/// Time that a command of LVM's has which changes something: a snapshot waits for all dirty pages of a mounted origin to be written.
pub const LVM_CHANGE_PATIENCE: Duration = Duration::from_secs(180);

/// Time that a command has to end once it was asked to, and that its output may lag behind its end.
pub const LVM_END_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a command's output that are kept. A report has some hundred bytes for a logical volume.
pub const LVM_OUTPUT_MAX: usize = 16 << 20;

/// Bytes of a command's complaints that are told: more than a screen of them explains nothing.
pub const LVM_STDERR_TOLD: usize = 2048;

/// Time that the log of a snapshot may lag behind its status before an answer does without the places in question: longer than a copy
/// takes on a busy disk, shorter than a client waits.
pub const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Time between two looks at a log that lags behind. A copy takes some milliseconds.
pub const LOG_POLL: Duration = Duration::from_millis(1);

/// Time that a freeze waits for a cleanup that just looks whether anything is being made, which takes no time at all.
pub const SNAPSHOT_MAKING_PATIENCE: Duration = Duration::from_secs(5);

/// Time that a snapshot has to be removed while somebody has it open. The agent gives all thaws 30 seconds at its end.
pub const SNAPSHOT_REMOVAL_PATIENCE: Duration = Duration::from_secs(20);

/// Time between two tries to remove a snapshot.
pub const SNAPSHOT_REMOVAL_RETRY: Duration = Duration::from_millis(300);

/// Room in a thin pool below which nothing is frozen in it, or a twentieth of a small one: what writers of a busy volume overwrite within
/// seconds.
pub const POOL_DATA_SPARE: u64 = 64 << 20;

/// The same of its metadata, in blocks of 4 KiB, or a tenth of a small one: the kernel itself raises the alarm there.
pub const POOL_METADATA_SPARE: u64 = 1024;

/// From this share on the operator is told that a pool gets full: well before it is, as LVM's own examples have it.
pub const POOL_NEARLY_FULL_PERCENT: u64 = 80;

/// Time that a freeze waits for a pool's metadata snapshot, which another program may hold for as long as it reads it. What is frozen
/// without one is read over NBD.
pub const METADATA_SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

/// The same where an answer waits for it: shorter than a client waits.
pub const METADATA_SNAPSHOT_PATIENCE_AGAIN: Duration = Duration::from_secs(2);

/// Time that the record of a metadata snapshot has to reach the disk. A freeze may hold the file system that it is on: what is frozen
/// then is read over NBD.
pub const POOL_RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// Least time between two looks at where a frozen image lies that was moved below: each reads all of its map, and something may happen to
/// the device-mapper many times a second.
pub const REMAP_PAUSE: Duration = Duration::from_millis(100);

/// The same once there was none to be had, and nothing happened since. What moves something is rarely done at once, and everything is read
/// over NBD meanwhile; but a file system tells nobody when it is.
pub const REMAP_PAUSE_MAX: Duration = Duration::from_secs(8);

/// Such looks take at most one part in this of the time.
pub const REMAP_SHARE: u32 = 10;

/// Time that an answer waits for such a look, which most often takes milliseconds. What is answered without it is read over NBD.
pub const REMAP_PATIENCE: Duration = Duration::from_secs(1);

/// Least time between two looks at all of a pool's metadata for one frozen image: each has the pool commit.
pub const THIN_LOOK_AGAIN_PAUSE: Duration = Duration::from_millis(500);

/// Looks at all of a pool's metadata take at most one part in this of the time.
pub const THIN_LOOK_AGAIN_SHARE: u32 = 10;

/// Bytes that the files of a set may have been written to between clone and freeze of their file system. That is milliseconds, in which
/// not even writes to memory come to more. They are read while it is frozen, for the most part out of the page cache, and kept in memory
/// until it is thawed.
pub const SET_PATCH_MAX: usize = 64 << 20;

/// Times that a set is cloned anew when more was written. The clones of the second round are made right after the first freeze has
/// written back what was dirty, so there is less; where that does not help, a fourth will not.
pub const SET_ROUNDS: u32 = 3;

/// Longest time for which a freeze holds the writers of an origin, or of all origins of a set, whatever hangs; as long as file systems are
/// frozen. Guests wait that long for a disk without complaint. Where an origin lies in a file system of its set they wait for both, one after
/// the other, and that is below the 30 s after which most guests try again.
pub const WINDOW_MAX: Duration = Duration::from_secs(10);

/// Smallest piece that is told to have changed or not, where a provider compares places: a block of most file systems.
pub const CHANGED_PIECE_MIN: u64 = 4096;

/// Most pieces for which it is told whether they changed: 32 MiB of bits for each older frozen image. Pieces of 4 KiB up to a volume of
/// 1 TiB, of 64 KiB (a leaf of the backup image) up to 16 TiB.
pub const CHANGED_PIECES_MAX: u64 = 1 << 28;

/// Shortest run of free space that is left out: a leaf of the backup image. A shorter one costs more to be told of than to be read.
pub const FREE_RUN_MIN: u64 = 64 << 10;

/// Most runs of free space that are left out: what takes 40 MiB of memory. What lies behind them is read like anything else.
pub const FREE_RUNS_MAX: usize = 1 << 21;
