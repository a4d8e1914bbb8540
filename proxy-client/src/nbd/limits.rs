//! How long is waited, and how much is in flight.

use std::time::Duration;

/// How long a session waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// From the first byte to transmission.
    pub handshake: Duration,
    /// For a reply; when it passes the session is over, because the server has stalled.
    pub request: Duration,
    /// For a server to take our goodbye.
    pub goodbye: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            // A server that cannot say hello in this time is not there.
            handshake: Duration::from_secs(20),
            // Longer than a lease break (45 s) or a path failover may hold a host's disk up.
            request: Duration::from_secs(90),
            goodbye: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// Deadlines with this one for a reply. A server that has less time for a reply has no more for a handshake.
    pub fn with_request(request: Duration) -> Self {
        let usual = Self::default();
        Self {
            handshake: usual.handshake.min(request),
            request,
            ..usual
        }
    }
}

/// Requests in flight on one connection.
pub(super) const REQUESTS_IN_FLIGHT: usize = 64;

/// Bytes of reads and writes in flight on one connection; one request more may begin below it, whatever its size.
pub(super) const BYTES_IN_FLIGHT: usize = 64 << 20;

/// Bytes that are read from the socket at once where small replies are awaited, so that one call takes many.
pub(super) const INPUT_CHUNK: usize = 64 << 10;

/// Bytes that are read at once behind a large payload: room for a header, and little that would be copied from here to the
/// next payload.
pub(super) const HEADER_CHUNK: usize = 2 << 10;

/// From here on a payload is received into memory of its own.
pub(super) const LARGE_PAYLOAD: usize = 16 << 10;

/// Longest buffer that is kept for the next payload: longer than any usual request, far below the largest.
pub(super) const KEPT_BUFFER_MAX: usize = 4 << 20;

/// Bytes of buffers that are kept while nobody uses them.
pub(super) const KEPT_BYTES: usize = 32 << 20;

/// How often one request is made because its connection was lost: a server that drops every connection at the same
/// request would otherwise hold the job for ever.
pub(super) const RETRIES: usize = 4;

/// First and longest wait before a lost connection is taken up again: a restarted server is back within a second, and one that
/// is not should not be pestered.
pub(super) const RECONNECT_WAIT: std::ops::Range<Duration> =
    Duration::from_millis(50)..Duration::from_secs(5);

/// How long a connection beside the first may take: a server that has no room for it does not always say so.
pub(super) const EXTRA_CONNECTION: Duration = Duration::from_secs(3);

/// Bytes of an export from which another connection pays.
pub(super) const BYTES_PER_CONNECTION: u64 = 4 << 20;
