//! What frozen images are made of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use volmap::frozen::FrozenImage;

use super::around::Around;
use crate::error::Error;
use crate::export::Export;

/// What a named thing of a host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// A volume that is only frozen.
    Volume,
    /// A volume that is served read-write under copy-before-write.
    Origin,
    /// A volume that is served read-write as it is.
    Writable,
}

/// How full a copy area is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CopyAreaFill {
    /// Bytes that hold old data.
    pub used: u64,
    /// Bytes in all.
    pub size: u64,
    /// How near its end it is.
    pub state: FillState,
    /// What is done at its end.
    pub on_full: OnFullReport,
    /// How long a writer is held at most, where writers are.
    pub hold_seconds: Option<u64>,
    /// Writers that wait for room at this moment.
    pub held_writers: u64,
}

/// How near its end a copy area is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FillState {
    /// There is room.
    Good,
    /// Three quarters are used.
    Filling,
    /// Nine tenths are used.
    NearlyFull,
    /// There is no room.
    Full,
}

/// What is done at the end of a copy area.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFullReport {
    /// Frozen images end.
    Break,
    /// Writers are held, for a time.
    Hold,
}

/// A volume that can be frozen, again and again.
pub trait Source: Send + Sync {
    /// What it is.
    fn kind(&self) -> VolumeKind;

    /// Where it is, for people.
    fn path(&self) -> String;

    /// Size in bytes.
    ///
    /// # Errors
    /// It is not there any more.
    fn size(&self) -> Result<u64, Error>;

    /// Makes a frozen image of it as it is now, with `around` before and after. Blocks.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Freeze`], [`crate::error::ErrorKind::Busy`] or [`crate::error::ErrorKind::Hook`].
    fn freeze(&self, around: &mut Around<'_>) -> Result<Arc<dyn FrozenImage>, Error>;

    /// Whether the disk that it lies on is known to rotate.
    fn rotates(&self) -> bool {
        false
    }

    /// How full its copy area is, if it has one.
    fn copy_area(&self) -> Option<CopyAreaFill> {
        None
    }

    /// The live volume as an export, if it is served.
    fn live(&self) -> Option<Arc<dyn Export>> {
        None
    }
}
