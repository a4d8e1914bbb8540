//! The law of validated reads (docs/law.md) as a small world in which everything that can happen is tried.
//!
//! A few units of an origin, a copy area, one disk; writers, a mover of volumes, an intruder, a host that freezes, answers
//! and restarts, and a proxy that backs up. Each of them does one small step at a time, and [`explore`] tries every order of
//! all their steps, up to the bounds of a [`Scenario`]. A unit is one byte here: a torn read is two bytes that were taken at
//! different instants, and the law holds for each of them by itself.
//!
//! Whoever wants to know what a rule says finds it here as a step:
//!
//! | rule | where |
//! |---|---|
//! | H1, H2 | [`writer`]: the order of a write; [`changes`]: freeze and mover |
//! | H3 | [`changes`]: restart |
//! | H4, H5, H6 | [`host`]: how a question is answered |
//! | P0 to P5 | [`proxy`]: how a batch is fetched |
//!
//! Two things must never happen ([`Violation`]): a byte is kept that is not the frozen one (I1, I2), or the proxy reads by a
//! map that its last confirmation had outdated already (P0). A [`Flaw`] is a way to break one rule; the tests show that the
//! protocol without a flaw has no violation, and that each flaw has one.

pub mod changes;
mod explore;
mod flaw;
pub mod host;
pub mod proxy;
mod scenario;
mod state;
#[cfg(test)]
mod tests;
pub mod writer;

pub use explore::{Report, Trace, explore};
pub use flaw::Flaw;
pub use scenario::{Provider, Scenario};
pub use state::{Action, Byte, Generation, Location, Place, Source, State, Step, UNITS, Unit, Violation};
