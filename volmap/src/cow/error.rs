//! What can go wrong in opening and freezing an origin. Writers never see these: they get the origin's own errors.

use std::io;
use std::path::PathBuf;

/// Why an origin was not opened or not frozen.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    /// The origin has a frozen image already, and holds only one at a time.
    #[error("the origin has a frozen image already: thaw it first, an origin holds one at a time")]
    Busy,
    /// Origin and copy area are one file or device.
    #[error("{path} is the origin itself: give the copy area a file or device of its own")]
    CopyAreaIsOrigin {
        /// The copy area as it was given.
        path: PathBuf,
    },
    /// The copy area cannot hold its header and a unit.
    #[error(
        "a copy area of {size} bytes is too small: it takes at least {min} bytes, and a tenth of the origin is a good start"
    )]
    CopyAreaTooSmall {
        /// Bytes asked for, or there.
        size: u64,
        /// Least number of bytes.
        min: u64,
    },
    /// A device that is smaller than what was asked for.
    #[error("{path} holds {available} bytes, {wanted} were asked for: ask for less or give a larger device")]
    CopyAreaDeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there.
        available: u64,
    },
    /// The file system of the copy area is full.
    #[error(
        "no room for a copy area of {size} bytes at {path}: make room, ask for a smaller size, or place it elsewhere"
    )]
    CopyAreaNoRoom {
        /// The copy area.
        path: PathBuf,
        /// Bytes that it takes.
        size: u64,
    },
    /// The copy area holds something that is not ours.
    #[error(
        "{path} holds data and is no copy area of ours: remove the file, or wipe the first 64 KiB of the device, if nobody needs it"
    )]
    CopyAreaForeign {
        /// The copy area.
        path: PathBuf,
    },
    /// Somebody else has the file open, so no lease can vouch for it.
    #[error(
        "{path} is open elsewhere ({reason}): end whatever uses it (fuser -v {path} tells), the origin and its copy area need it for themselves"
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
    /// The size of the origin changed since it was opened.
    #[error("the origin was {opened} bytes when it was opened and is {now} now: serve it anew")]
    SizeChanged {
        /// Bytes when it was opened.
        opened: u64,
        /// Bytes at the freeze.
        now: u64,
    },
    /// The witness was lost while the origin was frozen.
    #[error("the freeze did not hold: {0}")]
    WitnessLost(String),
    /// An operation on a path failed.
    #[error("{path}: {doing}: {source}")]
    At {
        /// The file or device.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Syncing the origin, or drawing random numbers, failed.
    #[error("freezing the origin failed: {0}")]
    Io(#[from] io::Error),
}
