//! Copy-before-write against storage in memory, with writers let in at named points, and against real files.
#![allow(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit everywhere; a truncated random number is as random"
)]

pub(crate) mod bench;
mod cost;
mod durability;
mod files;
mod hanging;
mod holding;
mod lineage;
pub(crate) mod memory;
mod model;
pub(crate) mod races;
mod several;
mod together;
mod trouble;
