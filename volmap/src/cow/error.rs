//! What can go wrong in opening and freezing an origin. Writers never see these: they get the origin's own errors.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::FROZEN_IMAGES_MAX;
use crate::storage::StorageError;

/// Why an origin was not opened or not frozen.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    /// The origin has as many frozen images as it can have.
    #[error("the origin has {FROZEN_IMAGES_MAX} frozen images, as many as it can: thaw one first")]
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
    /// The size of the origin changed since it was opened.
    #[error("the origin was {opened} bytes when it was opened and is {now} now: serve it anew")]
    SizeChanged {
        /// Bytes when it was opened.
        opened: u64,
        /// Bytes at the freeze.
        now: u64,
    },
    /// What was written to the origin may not be on its device: a frozen image could publish stale bytes.
    #[error(
        "writing the origin to its device failed earlier ({0}), so what is cached of it may differ from what is stored: mend the \
         storage, check the volume, and serve it anew"
    )]
    SyncFailed(String),
    /// Another freeze of the origin did not end.
    #[error(
        "another freeze of the origin had not come to its end after {} s: its storage, or that of its copy area, is slow, or hangs",
        .0.as_secs()
    )]
    AnotherFreeze(Duration),
    /// What comes before writers are held did not end.
    #[error(
        "getting the origin and its copy area ready had not come to its end after {} s: the storage of one of them is slow, or hangs. No writer \
         was held. It goes on by itself: see to the storage, and freeze again",
        .0.as_secs()
    )]
    NotReady(Duration),
    /// Writes that were under way did not end.
    #[error(
        "writes to the origin that were under way had not ended after {} s: its storage is slow, or hangs",
        .0.as_secs()
    )]
    NotStill(Duration),
    /// The deadline passed, and writers went on.
    #[error(
        "writers are held for {} s at most, and went on before all was frozen: storage that it takes is slow, or hangs. Nothing is left of it: \
         see to the storage, and freeze again",
        .0.as_secs()
    )]
    HeldTooLong(Duration),
    /// The witness was lost while the origin was frozen.
    #[error("the freeze did not hold: {0}")]
    WitnessLost(String),
    /// Origin or copy area are of no use.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Syncing the origin failed.
    #[error("freezing the origin failed: {0}")]
    Io(#[from] io::Error),
}
