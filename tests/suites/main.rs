//! The suites: one module a subject.

#![allow(clippy::unwrap_used, reason = "tests fail loudly")]

mod client_peers;
mod off_host;
mod walls;
