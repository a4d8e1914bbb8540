//! Making a snapshot for a frozen image, and removing it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use uuid::Uuid;

use super::image::{LvmSnapshotImage, Snapshot};
use super::kernel::KernelSnapshot;
use super::{METHOD, STRENGTH, name};
use crate::frozen::{Attestation, Description, FreezeError, Stability};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::{COPY_AREA_DEFAULT_MIN, COPY_UNIT, SNAPSHOT_REMOVAL_PATIENCE, SNAPSHOT_REMOVAL_RETRY};
use crate::lvm::{LogicalVolume, LvKind, LvName, Lvm, LvmError};
use crate::sys::DeviceNumber;

/// How large the copy area of a snapshot is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the origin's size.
    Percent(u8),
}

impl SnapshotSize {
    /// Bytes for an origin of `size` bytes, none asked for: a tenth, within what is of use.
    fn bytes(wanted: Option<Self>, size: u64) -> u64 {
        let most = size.max(COPY_UNIT);
        match wanted {
            Some(Self::Bytes(bytes)) => bytes,
            Some(Self::Percent(percent)) => {
                size / 100 * u64::from(percent) + size % 100 * u64::from(percent) / 100
            }
            None => (size / 10).max(COPY_AREA_DEFAULT_MIN).min(most),
        }
    }
}

/// Why a logical volume cannot have a snapshot.
///
/// # Errors
/// The reason, for the operator.
pub(crate) fn fits(volume: &LogicalVolume) -> Result<(), &'static str> {
    match volume.kind {
        LvKind::Thick => Ok(()),
        LvKind::Snapshot => {
            Err("it is a snapshot itself; one that is read-only is frozen already: --freeze static")
        }
        LvKind::Thin => Err("it is a thin volume"),
        LvKind::Internal => Err("it is a part of another logical volume"),
    }
}

/// Freezes a logical volume by a snapshot of it.
///
/// # Errors
/// [`FreezeError::Unfit`], [`FreezeError::NoRoom`], [`FreezeError::Lvm`], or those of mapping. Nothing is left behind then.
pub(crate) fn freeze(
    path: &Path,
    volume: &File,
    size: Option<SnapshotSize>,
    layers: &Arc<Layers>,
    clock: &Arc<GenerationClock>,
) -> Result<LvmSnapshotImage, FreezeError> {
    let not_mapped = |source| FreezeError::Map {
        path: path.to_owned(),
        source,
    };
    let by_lvm = |source| FreezeError::Lvm {
        path: path.to_owned(),
        source,
    };
    let unfit = |why| FreezeError::Unfit {
        path: path.to_owned(),
        method: METHOD,
        why,
    };
    let device = DeviceNumber::from_stat(volume.metadata().map_err(not_mapped)?.rdev());
    let (lvm, origin) = Lvm::behind(device)
        .map_err(by_lvm)?
        .ok_or_else(|| unfit("it is no logical volume"))?;
    fits(&origin).map_err(unfit)?;
    let wanted = SnapshotSize::bytes(size, origin.size);
    if wanted > origin.group_free {
        return Err(FreezeError::NoRoom {
            path: path.to_owned(),
            group: origin.name.group().to_owned(),
            free: origin.group_free,
            wanted,
        });
    }
    warn_of_leftovers(&lvm, &origin.name);
    let uuid = Uuid::new_v4();
    // What was written before this is in the frozen image.
    let frozen_at = SystemTime::now();
    let (new, device) = NewSnapshot::make(lvm, &origin.name, uuid, wanted).map_err(by_lvm)?;
    let snapshot = KernelSnapshot::open(device, new, layers).map_err(not_mapped)?;
    let (size, geometry) = (snapshot.size().map_err(not_mapped)?, snapshot.geometry());
    let survey = snapshot.survey()?;
    let description = Description {
        uuid,
        method: METHOD,
        strength: STRENGTH,
        stability: if survey.graph.reaches_disk() {
            Stability::Moves
        } else {
            Stability::Opaque
        },
        attestation: Attestation::Witnessed,
        frozen_at,
    };
    let image = LvmSnapshotImage::new(description, size, geometry, Box::new(snapshot), survey, clock);
    // One that is not read-only, or too small for what was written since, is told of now.
    image.check()?;
    Ok(image)
}

/// Snapshots of killed agents fill up, and slow their origin down; but only the operator knows that nobody needs them.
fn warn_of_leftovers(lvm: &Lvm, origin: &LvName) {
    let volumes = match lvm.volumes_beside(origin) {
        Ok(volumes) => volumes,
        Err(error) => return tracing::debug!(%error, "cannot look for snapshots that were left"),
    };
    for left in volumes.iter().filter(|volume| name::is_leftover(volume)) {
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
    /// Makes a read-only snapshot of `origin`, and gives its device. LVM holds writers of the origin for it, and has a mounted file
    /// system write out what it holds and stand still meanwhile.
    fn make(lvm: Lvm, origin: &LvName, frozen: Uuid, size: u64) -> Result<(Self, DeviceNumber), LvmError> {
        let missing = |why| LvmError::Report {
            command: format!("lvm lvcreate --snapshot {origin}"),
            why,
        };
        let name = name::of(origin, frozen).ok_or_else(|| missing("the group's name is none"))?;
        let chunk = format!("{COPY_UNIT}b");
        // LVM takes whole sectors, and makes whole extents of them.
        let size = format!("{}b", size.div_ceil(COPY_UNIT) * COPY_UNIT);
        // Dropped from here on, it is removed: a command that failed may have made it all the same.
        let new = Self {
            lvm,
            name,
            removed: AtomicBool::new(false),
        };
        let made = new.lvm.change(&[
            "lvcreate",
            "--yes",
            "--snapshot",
            "--permission",
            "r",
            "--chunksize",
            &chunk,
            "--size",
            &size,
            "--addtag",
            name::TAG,
            "--name",
            new.name.volume(),
            &origin.to_string(),
        ]);
        if let Err(LvmError::LeftRunning { .. }) = made {
            // It has the group locked, and nothing could be removed now. The error names the snapshot.
            new.removed.store(true, Ordering::Release);
        }
        made?;
        let made = new.lvm.volume(&new.name)?;
        let made = made.ok_or_else(|| missing("the new snapshot is not there"))?;
        if made.kind != LvKind::Snapshot || made.origin.as_deref() != Some(origin.volume()) || made.writable {
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
                tracing::error!(%error, "the snapshot {name} is left behind, and fills up: lvremove {name}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_as_large_as_asked_or_a_tenth() {
        const GIB: u64 = 1 << 30;
        let bytes = SnapshotSize::bytes;
        assert_eq!(bytes(Some(SnapshotSize::Bytes(5)), GIB), 5);
        assert_eq!(bytes(Some(SnapshotSize::Percent(25)), 4 * GIB), GIB);
        assert_eq!(bytes(Some(SnapshotSize::Percent(100)), u64::MAX), u64::MAX);
        assert_eq!(bytes(None, 100 * GIB), 10 * GIB);
        assert_eq!(bytes(None, GIB), GIB / 10);
        assert_eq!(bytes(None, 200 << 20), COPY_AREA_DEFAULT_MIN);
        assert_eq!(bytes(None, 32 << 20), 32 << 20);
    }
}
