//! The proxy of an off-host backup: reads the mapped extents of a frozen image from the shared disk, keeps what the host
//! confirms, and writes one image that stock `zstd` restores.
//!
//! [`plan`] turns block status into work, [`pipeline`] does it under the law of validated reads, [`transport`] holds the two
//! ways to bytes, [`image`] is the format of the image, [`output`] where it goes, [`job`] what is done with all this, verb by
//! verb; [`error`] is the one error of this crate with its table of exit codes.

mod chain;
pub mod cli;
pub mod config;
mod copy;
pub mod daemon;
mod directory;
mod doctor;
pub mod error;
pub mod escaped;
mod file_id;
#[doc(hidden)]
pub mod fuzzing;
pub mod image;
mod image_source;
pub mod interrupt;
pub mod job;
pub mod limits_file;
pub mod nbd;
pub mod output;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod report;
mod restore;
pub mod runtime;
mod serve;
mod standard_stream;
pub mod transport;
pub mod unreadable;
