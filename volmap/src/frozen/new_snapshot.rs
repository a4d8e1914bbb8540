//! Logical volumes that are snapshots of ours, classic or thin: made for a frozen image, and removed with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use uuid::Uuid;

use crate::limits::{SNAPSHOT_REMOVAL_PATIENCE, SNAPSHOT_REMOVAL_RETRY};
use crate::lvm::{LogicalVolume, LvKind, LvName, Lvm, LvmError};
use crate::sys::DeviceNumber;

/// What their names begin with; the frozen UUID follows.
const PREFIX: &str = "volmap_";

/// The tag of them all: `lvs @volmap` shows them.
const TAG: &str = "volmap";

/// The name of the snapshot of a frozen image. Without hyphens, which the device-mapper's names double.
fn name_of(origin: &LvName, frozen: Uuid) -> Option<LvName> {
    LvName::new(origin.group(), &format!("{PREFIX}{}", frozen.simple()))
}

/// Whether a logical volume is a snapshot of ours that nobody has open: an agent keeps its own open for as long as it lives.
fn is_leftover(volume: &LogicalVolume) -> bool {
    let uuid = volume.name.volume().strip_prefix(PREFIX).map(Uuid::try_parse);
    matches!(uuid, Some(Ok(_))) && volume.tags.iter().any(|tag| tag == TAG) && !volume.open
}

/// Snapshots of killed agents take up room, and slow their origin down; but only the operator knows that nobody needs them.
pub(super) fn warn_of_leftovers(lvm: &Lvm, origin: &LvName) {
    let volumes = match lvm.volumes_beside(origin) {
        Ok(volumes) => volumes,
        Err(error) => return tracing::debug!(%error, "cannot look for snapshots that were left"),
    };
    for left in volumes.iter().filter(|volume| is_leftover(volume)) {
        let left = &left.name;
        tracing::warn!(
            "{left} was left by an agent that was killed, if no freeze is under way: lvremove {left}"
        );
    }
}

/// A snapshot that we made. Removed when it is dropped.
pub(super) struct NewSnapshot {
    lvm: Lvm,
    name: LvName,
    removed: AtomicBool,
}

impl NewSnapshot {
    /// Makes a read-only snapshot of `origin`, which has to become one of `kind`, and gives its device. LVM holds writers of the origin
    /// for it, and has a mounted file system write out what it holds and stand still meanwhile.
    ///
    /// # Errors
    /// [`LvmError`]. Nothing is left behind then, unless the error says so.
    pub(super) fn make(
        lvm: Lvm,
        origin: &LvName,
        frozen: Uuid,
        kind: LvKind,
        more: &[&str],
    ) -> Result<(Self, DeviceNumber), LvmError> {
        let missing = |why| LvmError::Report {
            command: format!("lvm lvcreate --snapshot {origin}"),
            why,
        };
        let name = name_of(origin, frozen).ok_or_else(|| missing("the group's name is none"))?;
        // Dropped from here on, it is removed: a command that failed may have made it all the same.
        let new = Self {
            lvm,
            name,
            removed: AtomicBool::new(false),
        };
        let origin_name = origin.to_string();
        let mut arguments = vec!["lvcreate", "--yes", "--snapshot", "--permission", "r"];
        arguments.extend(more);
        arguments.extend(["--addtag", TAG, "--name", new.name.volume(), &origin_name]);
        let made = new.lvm.change(&arguments);
        if let Err(LvmError::LeftRunning { .. }) = made {
            // It has the group locked, and nothing could be removed now. The error names the snapshot.
            new.removed.store(true, Ordering::Release);
        }
        made?;
        let made = new.lvm.volume(&new.name)?;
        let made = made.ok_or_else(|| missing("the new snapshot is not there"))?;
        if made.kind != kind || made.origin.as_deref() != Some(origin.volume()) || made.writable {
            return Err(missing("the new logical volume is no read-only snapshot of it"));
        }
        let device = made
            .device
            .ok_or_else(|| missing("the new snapshot is not active"))?;
        Ok((new, device))
    }

    /// Removes the snapshot; only the first call does. One that somebody else removed is removed.
    pub(super) fn remove(&self) {
        if self.removed.swap(true, Ordering::AcqRel) {
            return;
        }
        let name = self.name.to_string();
        let deadline = Instant::now() + SNAPSHOT_REMOVAL_PATIENCE;
        loop {
            let Err(error) = self.lvm.change(&["lvremove", "--yes", &name]) else {
                return;
            };
            if matches!(self.lvm.volume(&self.name), Ok(None)) {
                return;
            }
            // Readers that are still under way, and whoever looks at every new device, have it open for a moment.
            if Instant::now() >= deadline || matches!(error, LvmError::LeftRunning { .. }) {
                tracing::error!(%error, "the snapshot {name} is left behind, and takes up more and more room: lvremove {name}");
                return;
            }
            thread::sleep(SNAPSHOT_REMOVAL_RETRY);
        }
    }
}

impl Drop for NewSnapshot {
    fn drop(&mut self) {
        self.remove();
    }
}
