//! Copy-before-write against storage in memory, with writers let in at named points, and against real files.

mod bench;
mod memory;
mod model;
mod races;
mod trouble;
