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
mod daemon;
mod doctor;
mod evil_client;
mod evil_server;
mod faults;
mod foreign;
mod fuzz_corpus;
mod geometry;
mod hooks;
mod image_server;
mod info;
mod interop;
mod lies_on;
mod limits;
mod lineage;
mod map;
mod nbdkit_filters;
mod off_host;
mod on_request;
mod outputs;
mod paths;
mod probe;
mod restore;
mod resume;
mod rig;
mod serving;
mod sets;
mod spool;
mod tls;
mod unreadable;
mod walls;
