//! What a proxy does, one verb a file.

pub mod backup;
pub mod copy;
pub mod demo;
pub mod info;
pub mod inspect;
pub mod restore;
mod room;
mod stop;
mod unreadable;
pub mod verify;

use room::room_on;
pub use unreadable::UnreadableRanges;
