//! Chains: a full image, and the incremental ones that continue it.
//!
//! Invariants:
//! * a chain is opened whole, and each image in it is the one that the next was made from: by frozen image and root;
//! * before anything is given out, the root of the newest image is computed from the leaf hashes of all of them and compared;
//! * every byte that is given out was checked against those leaf hashes.

mod cache;
mod find;
mod images;
mod member;

pub(crate) use cache::Cache;
#[cfg(test)]
pub(crate) use find::tests::{write_described, write_longest_chain};
pub(crate) use find::{find_continued, find_parents, find_parents_of_unfinished};
pub(crate) use images::{Chain, ChainSource, ParentChain, Part};
