//! What the format allows at most, and why. A file that claims more is refused before memory is spent on it.

/// Plain bytes of a data frame: small enough for random access and parallel work, large enough for zstd.
pub const DATA_FRAME_MAX: u64 = 1 << 20;

/// Plain bytes of a zero frame: 1 GiB costs about 36 kB, and stays far below the 4 GiB of a seek table entry.
pub const ZERO_FRAME_MAX: u64 = 1 << 30;

/// Compressed bytes of a data frame: zstd's worst case for [`DATA_FRAME_MAX`] is 4 KiB more than the plain bytes.
pub const DATA_COMPRESSED_MAX: u32 = (1 << 20) + (64 << 10);

/// Compressed bytes of a zero frame: four times what 1 GiB of zeroes needs with the fastest level.
pub const ZERO_COMPRESSED_MAX: u32 = 128 << 10;

/// Frames of a group: one RECORDS frame for 16 MiB of data keeps the index below one per mille.
pub const GROUP_FRAMES_MAX: usize = 16;

/// Records of a group: one for each byte of a leaf, so that any leaf fits whatever its extents look like; 1.5 MiB.
pub const GROUP_RECORDS_MAX: usize = 64 << 10;

/// Bytes of the descriptive text in the header: thousands of stores and LUNs.
pub const HEADER_TEXT_MAX: usize = 256 << 10;

/// Bytes of the text of a checkpoint: hundreds of reasons, each a sentence.
pub const CHECKPOINT_TEXT_MAX: usize = 64 << 10;

/// Frames in a file, set by the zstd seekable format.
pub const FRAMES_MAX: u64 = 0x0800_0000;

/// Bytes of a volume: what a file offset of Linux can say.
pub const VOLUME_MAX: u64 = i64::MAX as u64;

/// Window that a frame may ask the decoder for, as a power of two: no frame of ours needs more than its plain bytes,
/// and a zero frame only a small one.
pub const WINDOW_LOG_MAX: u32 = 20;
