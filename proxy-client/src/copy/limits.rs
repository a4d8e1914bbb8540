//! How much is moved at once.

/// Bytes in flight at most, whatever number of requests was asked for.
pub(super) const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// Longest stretch of zeroes in one piece.
pub(super) const ZERO_PIECE: u64 = 64 << 30;

/// Zeroes that are asked of a server in one request: it may have to write them, and has a deadline.
pub(super) const ZERO_REQUEST: u64 = 32 << 20;

/// What zeroes in flight are counted in.
pub(super) const ZERO_UNIT: u64 = 64 << 10;

/// Zeroes in flight at most, 256 MiB: a server that has to write them does one after the other, and each has its deadline.
pub(super) const ZERO_UNITS: usize = 4096;

/// Range whose map is asked for at once: a fragmented one gives a reply of some MiB, and the copy begins before the whole map
/// is known.
pub(super) const MAP_WINDOW: u64 = 1 << 30;

/// Bytes that may be written to a server before it is asked to flush: what is written again after a lost connection.
pub(super) const FLUSH_EVERY: u64 = 1 << 30;

/// How often what a lost connection may have taken with it is written again.
pub(super) const ROUNDS: usize = 4;

/// Bytes that are read from a stream at once.
pub(crate) const STREAM_READ: usize = 256 << 10;

/// Pieces of a stream that wait to be written.
pub(super) const STREAM_PIECES: usize = 16;

/// Writes to a file side by side: its file system takes one after the other, so more would only wait for each other.
pub(super) const FILE_WRITES: usize = 2;

/// Zeroes to send where they have to be sent.
pub(super) static ZEROES: [u8; 256 << 10] = [0; 256 << 10];
