//! The jobs on real files, and on loop devices where that is possible.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

mod backup;
mod fixture;
mod inspect;
mod loop_device;
mod restore;
mod verify;
