//! How long is waited, and how much is in flight.

use std::time::Duration;

/// From the first byte to transmission: a server that cannot say hello in this time is not there.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);

/// For one reply. Longer than a lease break (45 s) or a path failover may hold a host's disk up.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(90);

/// Requests in flight on one connection.
pub(super) const REQUESTS_IN_FLIGHT: usize = 64;

/// Bytes that are read from the socket at once.
pub(super) const INPUT_CHUNK: usize = 256 << 10;
