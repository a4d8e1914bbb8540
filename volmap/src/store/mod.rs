//! Stores, and the graph that leads from a frozen image down to its disks.
//!
//! A chain of extents is found by walking: a [`Place`] in one store falls into a [`Segment`] or [`Stripes`] of that store, which
//! name a place in the store below, until a disk is reached. Whatever is not understood ends the walk in
//! [`Below::Opaque`], and the bytes are then read over NBD.
//!
//! Invariants: lower stores come first; a store takes memory for each of its pieces, never for each stripe of them.

mod graph;
mod reach;
mod segment;
mod stripes;

pub use graph::{Below, Place, Resolved, Store, StoreGraph, StoreId, StoreKind};
pub use reach::Reach;
pub use segment::{Segment, normalise_segments};
pub use stripes::Stripes;
