//! The suites: one module a subject.

#![allow(clippy::unwrap_used, reason = "tests fail loudly")]

mod client_peers;
mod faults;
mod foreign;
mod interop;
mod off_host;
mod restore;
mod walls;
