//! Names and tags of the snapshots that we make, by which those that a killed agent left behind are found.

use uuid::Uuid;

use crate::lvm::{LogicalVolume, LvName};

/// What the names begin with; the frozen UUID follows.
const PREFIX: &str = "volmap_";

/// The tag of every snapshot of ours: `lvs @volmap` shows them.
pub(super) const TAG: &str = "volmap";

/// The name of the snapshot of a frozen image. Without hyphens, which the device-mapper's names double.
pub(super) fn of(origin: &LvName, frozen: Uuid) -> Option<LvName> {
    LvName::new(origin.group(), &format!("{PREFIX}{}", frozen.simple()))
}

/// Whether a logical volume is a snapshot of ours that nobody has open: an agent keeps its own open for as long as it lives.
pub(super) fn is_leftover(volume: &LogicalVolume) -> bool {
    let uuid = volume.name.volume().strip_prefix(PREFIX).map(Uuid::try_parse);
    matches!(uuid, Some(Ok(_))) && volume.tags.iter().any(|tag| tag == TAG) && !volume.open
}
