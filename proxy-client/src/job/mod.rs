//! What a proxy does, one verb a file.

pub mod backup;
pub mod copy;
mod copy_area;
pub mod demo;
pub mod doctor;
pub mod info;
pub mod inspect;
pub mod jobs;
pub mod lineage;
pub mod restore;
pub mod resume;
mod room;
pub mod serve;
pub mod set;
pub mod status;
mod stop;
mod thread;
mod unfinished;
pub mod verify;

use room::room_on;

pub use stop::unless_stopped;
