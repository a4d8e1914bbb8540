//! `lvm-snapshot`: a classic snapshot of a logical volume, made for the frozen image and removed with it.
//!
//! What the origin overwrites is first copied into the snapshot's copy area (LVM's `-cow` device). Which chunks were copied is told by a
//! log at its front, which only grows; how many copies have *begun* is told by the status of the live table. So:
//!
//! * the map is the log that was read, and its generation belongs to the length of that log: never to a status that was sampled
//!   beside it, which counts copies that the log does not hold yet (it was tried: wrong bytes pass);
//! * the witness is the status, sampled anew for every answer. As long as it counts no more copies than the map holds, no chunk of
//!   the origin that the map points to was overwritten: the kernel counts a copy before it begins, and overwrites after it is in
//!   the log. Where it counts more, the log is read until it is as long, and exactly the chunks in its new tail have moved;
//! * what lies in the copy area stays there: the snapshot is read-only, and has to stay so;
//! * a status that is no longer a number (`Invalid`, `Overflow`, `Merge failed`), another table or a writable snapshot: the content is
//!   lost (law H6).

mod create;
mod exception_store;
mod image;
mod kernel;
mod log;
mod table;
#[cfg(test)]
mod tests;

pub use create::SnapshotSize;
pub(crate) use create::{finish, fits, prepare, room};

/// Name of the provider.
pub(crate) const METHOD: &str = "lvm-snapshot";
