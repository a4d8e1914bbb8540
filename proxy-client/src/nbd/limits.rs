//! How long is waited, and how much is in flight.

use std::time::Duration;

/// From the first byte to transmission: a server that cannot say hello in this time is not there.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);

/// How long a session in transmission waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// For a reply; when it passes the session is over, because the server has stalled.
    pub(super) request: Duration,
    /// For a server to take our goodbye.
    pub(super) goodbye: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            // Longer than a lease break (45 s) or a path failover may hold a host's disk up.
            request: Duration::from_secs(90),
            goodbye: Duration::from_secs(2),
        }
    }
}

/// Requests in flight on one connection.
pub(super) const REQUESTS_IN_FLIGHT: usize = 64;

/// Bytes of reads and writes in flight on one connection; one request more may begin below it, whatever its size.
pub(super) const BYTES_IN_FLIGHT: usize = 64 << 20;

/// Bytes that are read from the socket at once.
pub(super) const INPUT_CHUNK: usize = 256 << 10;
