//! Copy-before-write against storage in memory, with writers let in at named points, and against real files.
#![allow(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit everywhere; a truncated random number is as random"
)]

mod bench;
mod cost;
mod durability;
mod files;
mod holding;
mod lineage;
mod memory;
mod model;
mod races;
mod several;
mod trouble;
