//! From the map to the image: read, validate, encode, order, write.
//!
//! Invariants (docs/law.md): bytes reach the image only after a confirmation that was asked for after they were read; batches are
//! written in volume order; bytes and requests in flight are bounded; the first error wins and nothing is committed after it.

mod confirmations;
mod delta;
mod disk_told;
mod fetch;
mod limits;
mod luns;
mod queue;
mod random;
mod run;
mod source;
mod spool;
mod stopped_writer;
mod tag;
mod tally;
mod throttle;
mod work;
#[cfg(test)]
mod world;

pub(crate) use delta::Changes;
pub use delta::Delta;
pub(crate) use disk_told::told;
pub use fetch::{FetchPolicy, Fetched, FetchedStretch, Plain};
pub use luns::{Luns, Proof};
pub use queue::Place;
pub use random::{Random, random_below};
pub use run::{BATCHES, CheckpointEvery, Finished, Writing, fetch_batches, run};
pub use source::{FrozenSource, generations_whole, map_whole};
pub use spool::Spool;
pub use tag::prove_by_tag;
pub use tally::Tally;
pub use throttle::{Throttle, ThrottleLimits};
