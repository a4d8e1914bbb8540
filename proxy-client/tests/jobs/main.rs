//! The jobs on real files, and on loop devices where that is possible.

mod fixture;
mod inspect;
mod loop_device;
mod restore;
mod verify;
