//! A snapshot for a frozen image: what it needs before it is taken, and what is made of it then.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::METHOD;
use super::exception_store::Geometry;
use super::image::{LvmSnapshotImage, Snapshot};
use super::kernel::KernelSnapshot;
use crate::frozen::new_snapshot::{self, PreparedOrigin, TakenSnapshot};
use crate::frozen::{Attestation, Description, FreezeError, Stability};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::{COPY_AREA_DEFAULT_MIN, COPY_UNIT};
use crate::lvm::{LogicalVolume, LvKind};

/// How large the copy area of a snapshot is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the origin's size.
    Percent(u8),
}

impl SnapshotSize {
    /// Bytes for an origin of `size` bytes; none asked for: a tenth of it can be overwritten, within what is of use. All of it is
    /// enough for any writer.
    fn bytes(wanted: Option<Self>, size: u64, geometry: Geometry) -> u64 {
        let hundredths = |n: u8| size / 100 * u64::from(n) + size % 100 * u64::from(n) / 100;
        match wanted {
            Some(Self::Bytes(bytes)) => bytes,
            Some(Self::Percent(percent)) => geometry.size_for(hundredths(percent)),
            None => geometry.size_for(hundredths(10).max(COPY_AREA_DEFAULT_MIN).min(size)),
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
        LvKind::Thin => Err("it is a thin volume: lvm-thin is for those"),
        LvKind::Internal => Err("it is a part of another logical volume: freeze that one"),
    }
}

/// How large the snapshot of a logical volume becomes, in bytes.
///
/// # Errors
/// [`FreezeError::NoRoom`]: its group has less left.
pub(crate) fn room(
    path: &Path,
    size: Option<SnapshotSize>,
    origin: &LogicalVolume,
) -> Result<u64, FreezeError> {
    let wanted = SnapshotSize::bytes(size, origin.size, Geometry::ours());
    if wanted <= origin.group_free {
        return Ok(wanted);
    }
    Err(FreezeError::NoRoom {
        path: path.to_owned(),
        group: origin.name.group().to_owned(),
        free: origin.group_free,
        wanted,
    })
}

/// A logical volume that a snapshot can be made of.
///
/// # Errors
/// [`FreezeError::Unfit`], [`FreezeError::NoRoom`], [`FreezeError::Lvm`].
pub(crate) fn prepare(
    path: &Path,
    volume: &File,
    size: Option<SnapshotSize>,
) -> Result<PreparedOrigin, FreezeError> {
    let (lvm, origin) = new_snapshot::origin_behind(path, volume, METHOD, fits)?;
    let chunk = format!("{COPY_UNIT}b");
    // LVM takes whole sectors, and makes whole extents of them.
    let wanted = room(path, size, &origin)?.div_ceil(COPY_UNIT) * COPY_UNIT;
    let wanted = format!("{wanted}b");
    let arguments = ["--chunksize", &chunk, "--size", &wanted].map(str::to_owned);
    Ok(PreparedOrigin::new(
        lvm,
        origin,
        LvKind::Snapshot,
        arguments.into(),
    ))
}

/// Maps a snapshot that was taken, and makes the frozen image of it.
///
/// # Errors
/// [`FreezeError::Map`], [`FreezeError::Slipped`]. The snapshot is removed then.
pub(crate) fn finish(
    path: &Path,
    taken: TakenSnapshot,
    layers: &Arc<Layers>,
    clock: &Arc<GenerationClock>,
) -> Result<LvmSnapshotImage, FreezeError> {
    let not_mapped = |source| FreezeError::Map {
        path: path.to_owned(),
        source,
    };
    let (uuid, strength, frozen_at) = (taken.uuid(), taken.strength(), taken.instant());
    let (new, device) = taken.into_snapshot(path)?;
    let snapshot = KernelSnapshot::open(device, new, layers).map_err(not_mapped)?;
    let (size, geometry) = (snapshot.size().map_err(not_mapped)?, snapshot.geometry());
    let survey = snapshot.survey()?;
    let description = Description {
        uuid,
        method: METHOD,
        strength,
        stability: Stability::Moves.on(&survey.graph),
        attestation: Attestation::Witnessed,
        frozen_at,
    };
    let image = LvmSnapshotImage::new(description, size, geometry, Box::new(snapshot), survey, clock);
    // One that is not read-only, or too small for what was written since, is told of now.
    image.check()?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_as_large_as_asked_or_can_keep_a_tenth() {
        const GIB: u64 = 1 << 30;
        let bytes = |wanted, size| SnapshotSize::bytes(wanted, size, Geometry::ours());
        // What is kept, the header, and an area for each 4096 chunks.
        let keeps =
            |data: u64| (data.div_ceil(COPY_UNIT) + 1 + data.div_ceil(COPY_UNIT) / 4096 + 1) * COPY_UNIT;
        assert_eq!(bytes(Some(SnapshotSize::Bytes(5)), GIB), 5);
        assert_eq!(bytes(Some(SnapshotSize::Percent(25)), 4 * GIB), keeps(GIB));
        assert_eq!(bytes(Some(SnapshotSize::Percent(100)), GIB), keeps(GIB));
        assert_eq!(bytes(None, 100 * GIB), keeps(10 * GIB));
        assert_eq!(bytes(None, GIB), keeps(GIB / 10));
        assert_eq!(bytes(None, 200 << 20), keeps(COPY_AREA_DEFAULT_MIN));
        assert_eq!(bytes(None, 32 << 20), keeps(32 << 20));
    }
}
