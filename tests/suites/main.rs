//! The suites: one module a subject.

#![allow(clippy::unwrap_used, reason = "tests fail loudly")]

mod attacks;
mod cleanup;
mod cli;
mod client_peers;
mod conformance;
mod copy;
mod cow;
mod cves;
mod evil_client;
mod evil_server;
mod faults;
mod foreign;
mod fuzz_corpus;
mod geometry;
mod hooks;
mod info;
mod interop;
mod lies_on;
mod nbdkit_filters;
mod off_host;
mod restore;
mod rig;
mod serving;
mod sets;
mod tls;
mod walls;
