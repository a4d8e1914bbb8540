//! From the map to the image: read, validate, encode, order, write.
//!
//! Invariants (docs/law.md): bytes reach the image only after a confirmation that was asked for after they were read; batches are
//! written in volume order; bytes and requests in flight are bounded; the first error wins and nothing is committed after it.

mod fetch;
mod limits;
mod luns;
mod random;
mod run;
mod source;
mod tag;
mod tally;
#[cfg(test)]
mod world;

pub use fetch::{FetchPolicy, Fetched, FetchedStretch};
pub use luns::{Luns, Proof};
pub use random::{Random, random_below};
pub use run::{Finished, fetch_batches, run};
pub use source::{FrozenSource, generations_whole, map_whole};
pub use tag::prove_by_tag;
pub use tally::Tally;
