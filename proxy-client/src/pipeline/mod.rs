//! From the map to the image: read, validate, encode, order, write.
//!
//! Invariants (docs/law.md): bytes reach the image only after a confirmation that was asked for after they were read; batches are
//! written in volume order; bytes and requests in flight are bounded; the first error wins and nothing is committed after it.

mod fetch;
mod limits;
mod luns;
mod run;
mod source;
mod tag;
mod tally;
#[cfg(test)]
mod world;

pub use fetch::FetchPolicy;
pub use luns::{Luns, Proof, random_below};
pub use run::{Finished, run};
pub use source::{FrozenSource, generations_whole, map_whole};
pub use tag::prove_by_tag;
pub use tally::Tally;
