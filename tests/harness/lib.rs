//! What the suites share: real file systems on loop devices, the two programs as processes, and fault injectors that implement
//! the product's own traits.
//!
//! A test that cannot run here says why through [`skip`], and is counted: `tests/run` lists the skips, and CI fails on one.

#![allow(clippy::unwrap_used, reason = "a harness fails loudly")]

pub mod ambush;
pub mod cow;
pub mod cutting_proxy;
pub mod daemon;
pub mod digest;
pub mod disk;
pub mod evil_server;
pub mod faulty_lun;
pub mod guest;
pub mod image;
pub mod peer;
pub mod pki;
pub mod program;
pub mod raw_client;
pub mod rust_nbd;
pub mod site;
pub mod skip;
pub mod volume;
