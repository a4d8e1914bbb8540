//! What can go wrong in opening a file or block device for ourselves.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file or block device is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Somebody else has it open, so nobody could vouch for it.
    #[error(
        "{path} is open elsewhere ({reason}): end whatever uses it (fuser -v {path} tells), it is needed alone"
    )]
    InUse {
        /// The file or device.
        path: PathBuf,
        /// What the kernel said.
        reason: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    NotAVolume {
        /// What was given.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("no room for {size} bytes at {path}: make room, ask for less, or place it elsewhere")]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Bytes that it takes.
        size: u64,
    },
    /// A device that is smaller than what was asked for.
    #[error("{path} holds {available} bytes, {wanted} were asked for: ask for less or give a larger device")]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there.
        available: u64,
    },
    /// It holds something that is not ours.
    #[error(
        "{path} holds data and is no {wanted} of ours: if nobody needs it, remove the file or wipe the device"
    )]
    Foreign {
        /// The file or device.
        path: PathBuf,
        /// What it should have been.
        wanted: &'static str,
    },
    /// An operation on it failed.
    #[error("{path}: {doing}: {source}")]
    At {
        /// The file or device.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An error of something that was tried on a path.
pub(crate) fn at(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::At { path, doing, source }
}
