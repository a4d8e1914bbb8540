//! From the map to the image: read, validate, encode, order, write.
//!
//! Invariants (docs/law.md): bytes reach the image only after a confirmation that was asked for after they were read; batches are
//! written in volume order; bytes and requests in flight are bounded; the first error wins and nothing is committed after it.

mod fetch;
mod limits;
mod luns;
mod source;
mod tally;
#[cfg(test)]
mod world;

pub use fetch::FetchPolicy;
pub use luns::{Luns, Proof, random_below};
pub use source::{FrozenSource, generations_whole, map_whole};
pub use tally::Tally;
