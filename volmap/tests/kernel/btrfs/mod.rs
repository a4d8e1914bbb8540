//! Files on btrfs: the chunk tree translated in every profile, and what moves extents noticed.

mod fidelity;
mod movers;
mod pool;
mod refusals;
