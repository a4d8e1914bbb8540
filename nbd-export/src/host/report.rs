//! What the control socket tells, and `--json` prints.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::source::{CopyAreaFill, VolumeKind};
use crate::export::{SetMembership, words};

/// Whether a frozen image still stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It answers.
    Good,
    /// Its content is lost (law H6).
    Gone,
}

/// A frozen image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FrozenReport {
    /// Name of its export.
    pub export: String,
    /// NBD URI at the first listener that offers it.
    pub uri: Option<String>,
    /// Its name for good.
    pub uuid: Uuid,
    /// The provider.
    pub method: String,
    /// What the bytes are good for: `application`, `quiesced`, `file-system` or `crash-consistent`.
    pub strength: String,
    /// The set that it was frozen with, if it was.
    pub set: Option<SetReport>,
    /// Size in bytes.
    pub size: u64,
    /// Seconds since the freeze.
    pub age_seconds: u64,
    /// Whether it still stands.
    pub state: State,
    /// The older frozen images since which it is known what changed, oldest first.
    #[serde(default)]
    pub lineage: Vec<Uuid>,
}

impl FrozenReport {
    /// What all of its freeze is thawed by: its own name, or that of its set.
    pub fn thawed_by(&self) -> &str {
        self.set.as_ref().map_or(&self.export, |set| &set.name)
    }
}

/// A frozen image that is not served any more, and kept for incrementals.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeptReport {
    /// Its name for good.
    pub uuid: Uuid,
    /// What its export was called.
    pub export: String,
    /// The provider.
    pub method: String,
    /// Size in bytes.
    pub size: u64,
    /// Seconds since the freeze.
    pub age_seconds: u64,
    /// Whether it can still tell what changed since.
    pub state: State,
}

/// A frozen image's part in the freeze of a set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetReport {
    /// The frozen set, by which all of it is thawed: `SET@ID`, or `SET` for the one made at start.
    pub name: String,
    /// Frozen images in it.
    pub members: usize,
    /// For how long writers were held up, in milliseconds.
    pub window_ms: u64,
    /// What held the volume still meanwhile.
    pub held_by: String,
}

impl From<&SetMembership> for SetReport {
    fn from(set: &SetMembership) -> Self {
        Self {
            name: set.name.clone(),
            members: set.members,
            window_ms: u64::try_from(set.window.as_millis()).unwrap_or(u64::MAX),
            held_by: words::held_by(set.held_by).to_owned(),
        }
    }
}

/// A volume or origin, with its frozen images.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
    /// Where it is.
    pub path: String,
    /// Size in bytes, if it is still there.
    pub size: Option<u64>,
    /// How full its copy area is.
    pub copy_area: Option<CopyAreaFill>,
    /// NBD URI of the live volume, where it is served.
    pub uri: Option<String>,
    /// Its frozen images.
    pub frozen: Vec<FrozenReport>,
    /// Those that are kept for incrementals, oldest first.
    #[serde(default)]
    pub kept: Vec<KeptReport>,
}

/// A tag or other export beside the volumes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExportReport {
    /// Name of the export.
    pub export: String,
    /// NBD URI at the first listener that offers it.
    pub uri: Option<String>,
    /// Size in bytes.
    pub size: u64,
}

/// All that an agent serves.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Listing {
    /// Volumes and origins, by name.
    pub volumes: Vec<VolumeReport>,
    /// Tags, by name.
    pub tags: Vec<ExportReport>,
}
