//! A thin snapshot for a frozen image: what it needs before it is taken, and what is made of it then.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::image::{LvmThinImage, NoSurvey, Snapshot};
use super::kernel::KernelSnapshot;
use super::pool_file::PoolFiles;
use super::{METHOD, room};
use crate::frozen::new_snapshot::{self, PreparedOrigin, TakenSnapshot};
use crate::frozen::{Attestation, Description, FreezeError, FrozenError, Stability};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::METADATA_SNAPSHOT_PATIENCE;
use crate::lvm::{LogicalVolume, LvKind};

/// Why a logical volume cannot have a thin snapshot.
///
/// # Errors
/// The reason, for the operator.
pub(crate) fn fits(volume: &LogicalVolume) -> Result<(), &'static str> {
    match volume.kind {
        LvKind::Thin => Ok(()),
        LvKind::Thick | LvKind::Snapshot => Err("it lies in no thin pool: lvm-snapshot is for such volumes"),
        LvKind::Internal => Err("it is a part of another logical volume: freeze that one"),
    }
}

/// A thin logical volume that a snapshot can be made of.
///
/// # Errors
/// [`FreezeError::Unfit`], [`FreezeError::Pool`], [`FreezeError::Lvm`].
pub(crate) fn prepare(path: &Path, volume: &File) -> Result<PreparedOrigin, FreezeError> {
    let (lvm, origin) = new_snapshot::origin_behind(path, volume, METHOD, fits)?;
    match room::check(&origin) {
        Ok(None) => {}
        Ok(Some(remark)) => tracing::warn!(volume = %path.display(), "{remark}"),
        Err(why) => {
            return Err(FreezeError::Pool {
                path: path.to_owned(),
                why,
            });
        }
    }
    // The volume group's rules of activation and skipping are for people.
    let arguments = ["--setactivationskip", "n", "--activate", "y"].map(str::to_owned);
    Ok(PreparedOrigin::new(lvm, origin, LvKind::Thin, arguments.into()))
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
) -> Result<LvmThinImage, FreezeError> {
    let not_mapped = |source| FreezeError::Map {
        path: path.to_owned(),
        source,
    };
    let (uuid, strength, frozen_at) = (taken.uuid(), taken.strength(), taken.instant());
    let (new, device) = taken.into_snapshot(path)?;
    let snapshot =
        KernelSnapshot::open(device, new, layers, PoolFiles::of_this_machine()).map_err(not_mapped)?;
    let survey = match snapshot.survey(METADATA_SNAPSHOT_PATIENCE) {
        Ok(survey) => survey,
        Err(NoSurvey::Gone(reason)) => return Err(FrozenError::Gone(reason).into()),
        Err(NoSurvey::Opaque(reason) | NoSurvey::NotNow(reason)) => {
            tracing::warn!(volume = %path.display(), reason, "no direct reads of this frozen image");
            snapshot.opaque(reason)
        }
    };
    let description = Description {
        uuid,
        method: METHOD,
        strength,
        stability: Stability::Pinned.on(&survey.graph),
        attestation: Attestation::Witnessed,
        frozen_at,
    };
    let size = snapshot.size();
    let image = LvmThinImage::new(description, size, Box::new(snapshot), survey, clock);
    // One that is not read-only is told of now.
    image.check()?;
    Ok(image)
}
