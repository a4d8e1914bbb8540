//! Making a thin snapshot for a frozen image.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::image::{LvmThinImage, NoSurvey, Snapshot};
use super::kernel::KernelSnapshot;
use super::{METHOD, STRENGTH};
use crate::frozen::new_snapshot::{self, NewSnapshot};
use crate::frozen::{Attestation, Description, FreezeError, FrozenError, Stability};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::METADATA_SNAPSHOT_PATIENCE;
use crate::lvm::{LogicalVolume, LvKind, Lvm};
use crate::sys::DeviceNumber;

/// Where agents take turns at the metadata of a pool.
const RUN_DIRECTORY: &str = "/run/volmap";

/// Why a logical volume cannot have a thin snapshot.
///
/// # Errors
/// The reason, for the operator.
pub(crate) fn fits(volume: &LogicalVolume) -> Result<(), &'static str> {
    match volume.kind {
        LvKind::Thin => Ok(()),
        LvKind::Thick | LvKind::Snapshot => Err("it lies in no thin pool"),
        LvKind::Internal => Err("it is a part of another logical volume"),
    }
}

/// Freezes a thin logical volume by a snapshot of it.
///
/// # Errors
/// [`FreezeError::Unfit`], [`FreezeError::Lvm`], or those of mapping. Nothing is left behind then.
pub(crate) fn freeze(
    path: &Path,
    volume: &File,
    layers: &Arc<Layers>,
    clock: &Arc<GenerationClock>,
) -> Result<LvmThinImage, FreezeError> {
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
    new_snapshot::warn_of_leftovers(&lvm, &origin.name);
    let uuid = Uuid::new_v4();
    // What was written before this is in the frozen image.
    let frozen_at = SystemTime::now();
    // The volume group's rules of activation and skipping are for people.
    let arguments = ["--setactivationskip", "n", "--activate", "y"];
    let (new, device) =
        NewSnapshot::make(lvm, &origin.name, uuid, LvKind::Thin, &arguments).map_err(by_lvm)?;
    let snapshot =
        KernelSnapshot::open(device, new, layers, PathBuf::from(RUN_DIRECTORY)).map_err(not_mapped)?;
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
        strength: STRENGTH,
        stability: if survey.graph.reaches_disk() {
            Stability::Pinned
        } else {
            Stability::Opaque
        },
        attestation: Attestation::Witnessed,
        frozen_at,
    };
    let size = snapshot.size();
    let image = LvmThinImage::new(description, size, Box::new(snapshot), survey, clock);
    // One that is not read-only is told of now.
    image.check()?;
    Ok(image)
}
