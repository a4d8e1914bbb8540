//! The proxy of an off-host backup: reads the mapped extents of a frozen image from the shared disk, keeps what the host
//! confirms, and writes one image that stock `zstd` restores.
//!
//! [`image`] is the format of that image, [`error`] the one error of this crate with its table of exit codes.

pub mod error;
pub mod image;
