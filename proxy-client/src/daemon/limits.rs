//! Bounds of the daemon, each with its why.

use std::time::Duration;

/// Longest body of a request: names and numbers.
pub(super) const BODY_MAX: usize = 64 << 10;

/// Time for a request to arrive once it has begun, header and body each.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Time for a client to shake hands in TLS.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// A whole connection. Clients make one for each request.
pub(super) const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);

/// Connections at a time of one listener: hosts and operators that poll, not crowds.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// Clients of one listener that shake hands or wait for a place; for one more the oldest is cut.
pub(super) const HANDSHAKES_MAX: usize = 64;

/// Pause after accept(2) failed: out of descriptors, most likely.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How often one job is begun at most, whatever ended it: one that takes the daemon with it must come to an end.
pub(super) const ATTEMPTS_MAX: u32 = 20;

/// Pause before a job whose host was lost is begun again, times the number of attempts.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Jobs that have ended and are still told of.
pub(super) const ENDED_KEPT: usize = 1000;
