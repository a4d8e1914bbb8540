//! The provider against a model of the kernel.

mod interleavings;
mod lineage;
mod model;
mod schedule;
mod store;
mod witnesses;
