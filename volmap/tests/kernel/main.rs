//! Frozen images of real file systems on real loop devices: needs root, and prints a `SKIP:` line without.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it skips, and fails where it cannot go on"
)]

mod attacks;
mod btrfs;
mod cost;
mod cow;
mod devices;
mod fidelity;
mod free_space;
mod geometry;
mod lineage;
mod page_cache;
mod quiesce;
mod refusals;
mod rig;
mod set;
