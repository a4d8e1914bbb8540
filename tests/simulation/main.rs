//! Deterministic simulation: the real copy-before-write, the real export, the real planning, fetching and validation of the proxy, in
//! a world of one thread whose every next step is a throw of seeded dice.
//!
//! Writers, movers, intruders and the kernel act between any two steps of the others, and in the midst of the host's reads, writes
//! and answers; the wire delays, reorders and drops; LUNs are read in pieces. Whenever the proxy has a batch, its bytes are
//! compared with what the volume held at the freeze (laws I1 and I2). There is no clock: time is the order of the steps.
//!
//! `SIMULATION_SECONDS` says for how long (20), `SIMULATION_SEED` repeats one run and tells what happened in it.

#![allow(clippy::unwrap_used, reason = "tests fail loudly")]
#![allow(clippy::print_stdout, reason = "seeds and counts are part of the proof")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests fit everywhere")]

mod backup;
mod cow;
mod dice;
mod disk;
mod image;
mod lun;
mod medium;
mod moved;
mod runs;
mod snapshot;
mod source;
mod wire;
mod world;
