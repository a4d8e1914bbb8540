//! What a proxy does, one verb a file.

pub mod backup;
pub mod demo;
pub mod inspect;
pub mod restore;
mod unreadable;
pub mod verify;

pub use unreadable::UnreadableRanges;
