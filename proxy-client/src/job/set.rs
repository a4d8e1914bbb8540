//! Sets: several exports that were frozen at one instant, an image each, and a manifest that says that they belong together.
//!
//! The manifest is written last and appears whole: where it is, every image of it is complete.

mod asked_for;
mod backup;
mod collect;
mod manifest;
mod read;

pub use backup::{SetReport, SetTarget, back_up_set, members};
pub(crate) use collect::{Candidate, collect};
pub use manifest::{SetImage, SetManifest, is_manifest};
pub use read::{restore_set, verify_set};

/// The frozen set that an export says it is of.
pub(in crate::job) fn told_set(description: &str) -> Option<&str> {
    backup::word(description, "set")
}
