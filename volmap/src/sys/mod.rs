//! The system calls that the standard library lacks, behind safe functions. The only unsafe code of this crate.
//!
//! Invariants:
//!
//! * every function that has to do with a file borrows it open, as a [`std::fs::File`], so no descriptor is used after its close;
//! * every buffer that the kernel writes to has the size that the kernel was told, and its contents are checked before use;
//! * nothing is decided here: raw flags and errors are passed up.
#![allow(
    unsafe_code,
    reason = "the one room for it; each block argues why it is sound"
)]

pub mod block_device;
pub mod btrfs;
pub mod clone;
pub mod detached_mount;
pub mod device_mapper;
mod device_number;
pub mod fiemap;
pub mod file_system;
pub mod fsmap;
pub mod heap;
pub mod inherited;
pub mod inode_flags;
mod ioctl;
pub mod lease;
pub mod loop_device;
pub mod page_cache;
pub mod scsi;

pub use device_number::DeviceNumber;
