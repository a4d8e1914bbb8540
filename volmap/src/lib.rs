//! Extents, generations and frozen images of Linux storage stacks.
//!
//! A volume is frozen by a provider ([`frozen`]), which gives a [`frozen::FrozenImage`]: its bytes, what they hold, and where they
//! lie, down to the disk ([`store`]). [`layers`] finds the way down, [`probe`] tells which providers fit a volume.
//!
//! No async runtime here, and no network: the export and the proxy are built on top. `sys` holds the only unsafe code.

pub mod cow;
pub mod freeze;
pub mod frozen;
pub mod generation;
pub mod identity;
pub mod layers;
pub mod leftovers;
pub mod limits;
pub mod lvm;
pub mod map;
pub mod probe;
pub mod processes;
pub mod range;
pub mod set;
pub mod storage;
pub mod store;
pub mod sys;
pub mod tag;
