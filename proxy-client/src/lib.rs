//! The proxy of an off-host backup: reads the mapped extents of a frozen image from the shared disk, keeps what the host
//! confirms, and writes one image that stock `zstd` restores.
//!
//! [`plan`] turns block status into work, [`pipeline`] does it under the law of validated reads, [`transport`] holds the two
//! ways to bytes, [`image`] is the format of the image, [`error`] the one error of this crate with its table of exit codes.

pub mod config;
pub mod error;
pub mod image;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod report;
pub mod transport;
