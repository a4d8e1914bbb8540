//! `static`: what is frozen already. An array snapshot, a detached or read-only device, a file that nobody writes to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;
use uuid::Uuid;

use super::hold::{DeviceHold, Hold};
use super::pinned::{Frozen, PinnedImage, Survey, SurveyAgain};
use super::still_file::{Immutability, StillFile};
use super::{Attestation, Description, FreezeError, FrozenError, Stability, Strength};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::store::StoreGraph;
use crate::sys::block_device;

/// Name of the provider.
pub(crate) const METHOD: &str = "static";

/// All that is known of it.
pub(crate) const STRENGTH: Strength = Strength::CrashConsistent;

/// Takes a file as frozen, without changing anything about it: by lease, and by `+i` where it is set.
///
/// # Errors
/// As `quiesce`.
pub(crate) fn hold_file(
    path: &Path,
    file: File,
    assume_exclusive: bool,
) -> Result<StillFile<'_>, FreezeError> {
    StillFile::held(
        METHOD,
        STRENGTH,
        path,
        file,
        assume_exclusive,
        Immutability::Found,
    )
}

/// A block device that is taken as frozen.
pub(crate) struct StillDevice<'a> {
    path: &'a Path,
    hold: DeviceHold,
    read_only: bool,
    uuid: Uuid,
    frozen_at: SystemTime,
}

/// Takes a block device as frozen: because it is read-only, or on the operator's word. Nobody can see what another machine writes
/// to it.
///
/// # Errors
/// [`FreezeError::NotWitnessed`], [`FreezeError::DeviceInUse`], [`FreezeError::Map`].
pub(crate) fn hold_device(path: &Path, assume_exclusive: bool) -> Result<StillDevice<'_>, FreezeError> {
    let not_mapped = |source| FreezeError::Map {
        path: path.to_owned(),
        source,
    };
    let file = open_alone(path)?;
    let read_only = block_device::is_read_only(&file).map_err(not_mapped)?;
    if !read_only && !assume_exclusive {
        return Err(FreezeError::NotWitnessed {
            path: path.to_owned(),
            why: "it is a block device",
        });
    }
    // Held from before the map: what happens from here on is noticed.
    let hold = DeviceHold::new(file, read_only && !assume_exclusive).map_err(not_mapped)?;
    Ok(StillDevice {
        path,
        hold,
        read_only: read_only && !assume_exclusive,
        uuid: Uuid::new_v4(),
        frozen_at: SystemTime::now(),
    })
}

impl StillDevice<'_> {
    /// Whether it stood still because it is read-only, and not on the operator's word.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The frozen image to be.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Whether it is the device that it was, as far as anybody can know.
    ///
    /// # Errors
    /// [`FreezeError::Slipped`].
    pub(crate) fn check(&self) -> Result<(), FreezeError> {
        let slipped = |why| FreezeError::Slipped(FrozenError::Gone(why));
        self.hold.check_content().map_err(slipped)
    }

    /// The instant that the frozen image is of, where it is not that of the hold.
    pub(crate) fn set_instant(&mut self, frozen_at: SystemTime) {
        self.frozen_at = frozen_at;
    }

    /// Maps the device, and makes the frozen image of it.
    ///
    /// # Errors
    /// Those of mapping.
    pub(crate) fn freeze(
        self,
        layers: &Arc<Layers>,
        clock: &Arc<GenerationClock>,
    ) -> Result<PinnedImage, FreezeError> {
        let (layers, path) = (Arc::clone(layers), self.path.to_owned());
        let survey_again: SurveyAgain = Box::new(move |file| {
            let mut graph = StoreGraph::new();
            let mapping = layers.map(&mut graph, file, &path)?;
            Ok(Survey::of(graph, mapping))
        });
        let survey = survey_again(self.hold.file()).map_err(|source| FreezeError::Map {
            path: self.path.to_owned(),
            source,
        })?;
        let description = Description {
            uuid: self.uuid,
            method: METHOD,
            strength: STRENGTH,
            stability: Stability::Pinned.on(&survey.graph),
            attestation: Attestation::Unattested,
            frozen_at: self.frozen_at,
        };
        let frozen = Frozen {
            description,
            hold: Box::new(self.hold),
            survey,
            survey_again,
        };
        Ok(PinnedImage::new(frozen, clock)?)
    }
}

/// O_EXCL keeps out mounts, LVM and arrays, now and for as long as it is open; not a plain writer.
pub(crate) fn open_alone(path: &Path) -> Result<File, FreezeError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_DIRECT)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => FreezeError::DeviceInUse {
                path: path.to_owned(),
            },
            _ => FreezeError::Open {
                path: path.to_owned(),
                source,
            },
        })
}
