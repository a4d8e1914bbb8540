//! What one client, and all of them, can hold of this process.

use std::time::Duration;

/// What an operator may set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sessions at a time.
    pub connections: usize,
    /// Time for a whole handshake.
    pub handshake_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            handshake_deadline: HANDSHAKE_DEADLINE,
        }
    }
}

/// Sessions at a time, unless said otherwise. A copying client opens four to eight; a few hundred serve dozens of them, and their
/// threads and descriptors stay below the usual limits of a process.
pub const CONNECTIONS: usize = 256;

/// Most sessions that can be asked for: threads and descriptors of more are a burden to any machine.
pub const CONNECTIONS_MAX: usize = 16_384;

/// Handshakes at a time, beside the sessions. Each keeps a descriptor and at most one option, so that all together take 32 MiB. A client
/// on this machine or near it is usually through with its own before a flood from its own address has opened as many; one behind a slow
/// link, or one that has TLS to do first, need not be.
pub const HANDSHAKES_MAX: usize = 512;

/// Handshakes of one peer that are still no crowd: a client that opens all its connections at once has four to eight.
pub const CROWD: usize = 16;

/// Descriptors that a session may take: its socket, and what its reactor needs.
pub const SESSION_DESCRIPTORS: usize = 6;

/// Descriptors for volumes, listeners and the standard streams. A frozen image keeps some ten open for each device below it, to see that
/// nothing changes there.
pub const OTHER_DESCRIPTORS: usize = 4096;

/// Time for a whole handshake, unless said otherwise. Ten seconds is what qemu-nbd took as its fix of CVE-2024-7409: far more than any
/// honest client on a bad line needs, and a held-open handshake does not keep a slot for longer.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that a client may send during its handshake, over all options: thousands of honest options, and an end to a
/// client that sends them as fast as it can until the deadline.
pub const HANDSHAKE_BYTES_MAX: usize = 4 << 20;

/// Requests of one connection that are in flight, from their last byte to the last byte of their reply. The deepest queues that clients
/// keep are of 64 (nbdcopy) to 128 (the kernel); what comes beyond waits in the socket.
pub const REQUESTS_MAX: usize = 128;

/// Requests of one connection that other threads serve, because they wait for a device. Sixteen keep a disk busy.
pub const BLOCKING_MAX: usize = 16;

/// Stack of the thread of a connection: its calls are few and shallow, its buffers are on the heap.
pub const CONNECTION_STACK: usize = 512 << 10;

/// Threads for freezes and thaws, beside those of requests.
pub const OTHER_THREADS: usize = 64;

/// Idle time after which a TCP connection is probed, time between two probes, and unanswered probes until it is closed. A proxy
/// that lost its power says nothing: without this its connections would keep their slots for ever.
pub const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Bytes of requests and replies of one connection that are in memory: two of the longest requests, so that one is
/// read or written to the store while the other is on the wire.
pub const BYTES_MAX: usize = (64 << 20) + REQUESTS_MAX * REQUEST_COST;

/// What a request costs beside its data: its headers and its places in the queues.
pub const REQUEST_COST: usize = 512;

/// Bytes of requests and replies of all connections that are in memory. Sixteen clients can have all that one may have; more of
/// them wait for each other.
pub const SERVER_BYTES_MAX: usize = 1 << 30;

/// Time in which a client takes at least one byte of what it asked for, or sends one of what it is writing, if others wait for the
/// memory that this takes. While nobody
/// does, a client may be stopped as long as it likes.
pub const STALL_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that a client which holds more than that has to move in [`STALL_DEADLINE`], if others wait for the memory. Without it a byte
/// now and then would keep 64 MiB.
pub const STALL_BYTES: usize = 1 << 20;

/// Replies, and bytes of them, that are made before they are sent. More of them in one system call cost less; but the client has
/// nothing to do until the first of them is there. (Tried: fewer than 8 replies, and less than 1 MiB, cost a fifth of the speed.)
pub const BATCH_REPLIES: usize = 16;

/// See [`BATCH_REPLIES`].
pub const BATCH_BYTES: u64 = 1 << 20;

/// What one descriptor of a block status reply takes while it is made: the extent of the frozen image, the descriptor, and its 16
/// bytes in the reply.
pub const DESCRIPTOR_COST: usize = 96;

/// What a block status request is taken to need at most.
pub const STATUS_COST: usize = crate::export::limits::DESCRIPTORS_MAX * DESCRIPTOR_COST;

/// Extents are hardly ever smaller than a disk's smallest block, so a short range has few of them.
pub const EXTENT_LEN_MIN: usize = 512;

/// Bytes that are received at a time between requests: a batch of small ones comes in one system call.
pub const INPUT_CHUNK: usize = 4 << 10;

/// Bytes that are received at a time of a payload.
pub const PAYLOAD_CHUNK: usize = 256 << 10;

/// Rounds of receiving, serving and sending after which a busy connection looks at what else there is: a shutdown, the end of the
/// process. With [`PATIENCE`] in each of them, that is every second and a half at the latest.
pub const ROUNDS: usize = 32;

/// Bytes of files that may queue up in a Unix socket, as far as the system allows it.
pub const FILE_QUEUE: usize = 1 << 20;

/// Time that the thread of a busy connection waits in the system call for the next request. Until it is over, it takes no notice of a
/// shutdown.
pub const PATIENCE: Duration = Duration::from_millis(50);

/// Time after the beginning of a shutdown in which requests that still come are told so, before the connection is closed.
pub const LINGER: Duration = Duration::from_millis(200);

/// Time that a client has, when a connection ends, to read our last replies and close its side. Replies that are in the buffers of both
/// sides are through a slow line in it; who needs longer loses nothing but what it never fetched.
pub const FAREWELL: Duration = Duration::from_secs(5);

/// Bytes that are read for nothing meanwhile: more than the buffers of two sockets hold.
pub const FAREWELL_BYTES: usize = 16 << 20;

/// Time that requests in flight get at shutdown before their connections are closed.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Pause after a failed accept (out of descriptors, say), so that the failure does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
