//! From a held file to its frozen image: the order of lease, `+i` and map, the same for every provider.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::hold::{FileHold, Hold};
use super::pinned::{Frozen, PinnedImage, Survey, SurveyAgain};
use super::{Description, FreezeError, FrozenError, Stability, Strength};
use crate::generation::GenerationClock;
use crate::layers::{Layers, VolumeKind};
use crate::leftovers::{FileLeftover, Ledger, Leftover, LeftoverKind, Note};
use crate::store::{Below, Store, StoreGraph};
use crate::sys::file_system::{self, FileSystemType};
use crate::sys::lease;

/// How a file becomes immutable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Immutability {
    /// We set the flag, and clear it at the end.
    Set,
    /// It has to be there already: `static` changes nothing.
    Found,
}

/// A file to be frozen where it lies.
pub(crate) struct StillFile<'a> {
    pub(super) method: &'static str,
    pub(super) strength: Strength,
    pub(super) path: &'a Path,
    pub(super) hold: FileHold,
    pub(super) immutability: Immutability,
    pub(super) uuid: Uuid,
    pub(super) frozen_at: SystemTime,
    pub(super) ledger: Option<Arc<Ledger>>,
}

/// Why a file is not immutable; its bytes then go over NBD.
#[derive(Debug, thiserror::Error)]
enum PinRefusal {
    #[error(
        "the file is not immutable, so its extents may move: chattr +i before the freeze, or freeze by quiesce"
    )]
    NotFound,
    #[error(
        "the file cannot be made immutable, so its extents may move: this needs root (CAP_LINUX_IMMUTABLE)"
    )]
    NotAllowed,
    #[error("the file cannot be made immutable, so its extents may move: {0}")]
    Failed(io::Error),
    #[error(
        "the file is not made immutable, so its extents may move: that it is cannot be written down in the state directory: {0}"
    )]
    NotNoted(io::Error),
}

impl<'a> StillFile<'a> {
    /// The file at `path`, open read-only, held as it is from now on. The lease first: a file that is being written to is not
    /// made immutable under its writer.
    ///
    /// # Errors
    /// [`FreezeError::WriterPresent`], [`FreezeError::LeaseNotAllowed`], [`FreezeError::NotWitnessed`].
    pub(super) fn held(
        method: &'static str,
        strength: Strength,
        path: &'a Path,
        file: File,
        assume_exclusive: bool,
        immutability: Immutability,
    ) -> Result<Self, FreezeError> {
        Ok(Self {
            method,
            strength,
            path,
            hold: hold(file, path, assume_exclusive)?,
            immutability,
            uuid: Uuid::new_v4(),
            frozen_at: SystemTime::now(),
            ledger: None,
        })
    }

    /// What is done to the file is written down there first.
    #[must_use]
    pub(super) fn with_ledger(mut self, ledger: Option<&Arc<Ledger>>) -> Self {
        self.ledger = ledger.cloned();
        self
    }

    /// The frozen image to be.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Whether nobody came in between so far.
    ///
    /// # Errors
    /// [`FreezeError::Slipped`].
    pub(crate) fn check(&self) -> Result<(), FreezeError> {
        let slipped = |why| FreezeError::Slipped(FrozenError::Gone(why));
        self.hold.check_content().map_err(slipped)
    }

    /// Whether a lease holds it, and not the operator's word alone.
    pub(crate) fn is_leased(&self) -> bool {
        self.hold.is_leased()
    }

    /// The instant that the frozen image is of, where it is not that of the hold.
    pub(crate) fn set_instant(&mut self, frozen_at: SystemTime) {
        self.frozen_at = frozen_at;
    }

    /// Pins the file, maps it, and makes the frozen image of it. The hold is ended where that fails.
    pub(crate) fn freeze(
        mut self,
        layers: &Arc<Layers>,
        clock: &Arc<GenerationClock>,
    ) -> Result<PinnedImage, FreezeError> {
        let not_mapped = |source| FreezeError::Map {
            path: self.path.to_owned(),
            source,
        };
        let kind = layers.kind(self.hold.file()).map_err(not_mapped)?;
        // On a declared disk a location is the offset in the file itself, wherever its file system moves that.
        let refusal = match kind {
            VolumeKind::DeclaredDisk => None,
            _ => self.pin().err(),
        };
        let mut graph = StoreGraph::new();
        let mut mapping = layers
            .map_still(&mut graph, self.hold.file(), self.path)
            .map_err(not_mapped)?;
        let is_pinned = refusal.is_none();
        if let Some(refusal) = refusal
            && graph.reaches_disk()
            && !mapping.notices_moves
        {
            tracing::warn!(volume = %self.path.display(), reason = %refusal, "no direct reads of this frozen image");
            let top = graph.store(mapping.top).clone();
            graph = StoreGraph::new();
            mapping.top = graph.add(Store {
                below: Below::Opaque(refusal.to_string()),
                ..top
            });
        }
        let description = Description {
            uuid: self.uuid,
            method: self.method,
            strength: self.strength,
            stability: Stability::Pinned.on(&graph),
            attestation: self.hold.attestation(),
            frozen_at: self.frozen_at,
        };
        let frozen = Frozen {
            description,
            hold: Box::new(self.hold),
            survey: Survey::of(graph, mapping),
            survey_again: survey_again(Arc::clone(layers), self.path.to_owned(), is_pinned),
        };
        Ok(PinnedImage::new(frozen, clock)?)
    }

    fn pin(&mut self) -> Result<(), PinRefusal> {
        let immutability = self.immutability;
        let refusal = |error: io::Error| match (immutability, error.kind()) {
            (Immutability::Found, io::ErrorKind::PermissionDenied) => PinRefusal::NotFound,
            (Immutability::Set, io::ErrorKind::PermissionDenied) => PinRefusal::NotAllowed,
            _ => PinRefusal::Failed(error),
        };
        if immutability == Immutability::Set {
            let note = self.note().map_err(PinRefusal::NotNoted)?;
            self.hold.make_immutable(note).map_err(refusal)?;
        }
        self.hold.pin().map_err(refusal)
    }

    /// Says on disk that the file is about to become immutable; a clone was written down before it was made.
    fn note(&self) -> io::Result<Option<Note>> {
        let Some(ledger) = self.ledger.as_ref().filter(|_| !self.hold.is_clone()) else {
            return Ok(None);
        };
        let inode = self.hold.file().metadata()?.ino();
        let path = fs::canonicalize(self.path)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let leftover = FileLeftover::at(LeftoverKind::Immutable(inode), directory, name, self.uuid)?;
        ledger.note(&Leftover::File(leftover)).map(Some)
    }
}

/// Looks again where a held file lies, once it was moved below.
fn survey_again(layers: Arc<Layers>, path: PathBuf, is_pinned: bool) -> SurveyAgain {
    Box::new(move |file| {
        let mut graph = StoreGraph::new();
        let mapping = layers.map_still(&mut graph, file, &path)?;
        if is_pinned || mapping.notices_moves {
            Ok(Survey::of(graph, mapping))
        } else {
            Err(io::Error::other(
                "nothing notices any more where its file system moves it",
            ))
        }
    })
}

/// Holds a file opened read-only by a lease; without one only where the operator vouches.
pub(crate) fn hold(file: File, path: &Path, assume_exclusive: bool) -> Result<FileHold, FreezeError> {
    let path = path.to_owned();
    // Elsewhere a lease, if there are any, is only about this machine.
    let local = match file_system::of(&file) {
        Ok(found) => !matches!(found.kind, FileSystemType::Other(_)),
        Err(source) => return Err(FreezeError::Map { path, source }),
    };
    if !local {
        return if assume_exclusive {
            Ok(FileHold::without_lease(file))
        } else {
            let why = "other machines may write to its file system";
            Err(FreezeError::NotWitnessed { path, why })
        };
    }
    match lease::take_read(&file) {
        Ok(()) => Ok(FileHold::leased(file)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Err(FreezeError::WriterPresent { path }),
            _ if assume_exclusive => Ok(FileHold::without_lease(file)),
            io::ErrorKind::PermissionDenied => Err(FreezeError::LeaseNotAllowed { path }),
            _ => {
                let why = "its file system has no leases";
                Err(FreezeError::NotWitnessed { path, why })
            }
        },
    }
}
