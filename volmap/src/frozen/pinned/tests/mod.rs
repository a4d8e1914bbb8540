//! Pinned images on a hold and on layers that do what the test says.

mod moves;
mod witnesses;
mod world;
