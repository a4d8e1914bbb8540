//! What one client, and all of them, can hold of this process.

use std::time::Duration;

/// Connections at a time. A copying client opens four to eight; a few hundred serve dozens of them, and their
/// threads and descriptors stay below the usual limits of a process.
pub const CONNECTIONS_MAX: usize = 256;

/// Time for a whole handshake. Ten seconds is what qemu-nbd took as its fix of CVE-2024-7409: far more than any
/// honest client on a bad line needs, and a held-open handshake does not keep a slot for longer.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that a client may send during its handshake, over all options: thousands of honest options, and an end to a
/// client that sends them as fast as it can until the deadline.
pub const HANDSHAKE_BYTES_MAX: usize = 4 << 20;

/// Requests of one connection that are being served. Each takes a thread while it blocks; sixteen keep a disk and two
/// processors busy.
pub const REQUESTS_MAX: usize = 16;

/// Threads that may block at a time: one for each request that can be served, and some for freezes and thaws. With fewer, clients of
/// one dead disk would take them all, and nobody could read another volume or thaw this one. They are made when they are needed.
pub const BLOCKING_THREADS_MAX: usize = CONNECTIONS_MAX * REQUESTS_MAX + 64;

/// Idle time after which a TCP connection is probed, time between two probes, and unanswered probes until it is closed. A proxy
/// that lost its power says nothing: without this its connections would keep their slots for ever.
pub const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Bytes of requests and replies of one connection that are in memory: two of the longest requests, so that one is
/// read or written to the store while the other is on the wire.
pub const BYTES_MAX: usize = 64 << 20;

/// What one descriptor of a block status reply takes while it is made: the extent of the frozen image, the descriptor, and its 16
/// bytes in the reply.
pub const DESCRIPTOR_COST: usize = 96;

/// What a block status request is taken to need at most.
pub const STATUS_COST: usize = crate::export::limits::DESCRIPTORS_MAX * DESCRIPTOR_COST;

/// Extents are hardly ever smaller than a disk's smallest block, so a short range has few of them.
pub const EXTENT_LEN_MIN: usize = 512;

/// Free space kept ready for reading requests: a batch of small ones comes in one system call.
pub const INPUT_CHUNK: usize = 64 << 10;

/// Replies that are written in one system call: as many as there are requests in flight.
pub const REPLIES_BATCH: usize = REQUESTS_MAX;

/// Time that requests in flight get at shutdown before their connections are closed.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Pause after a failed accept (out of descriptors, say), so that the failure does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
