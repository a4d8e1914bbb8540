//! A volume of a set, step by step: opened, held, taken, finished.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::HeldBy;
use super::mounts;
use super::patch::{self, Patch};
use crate::freeze::{self, FreezeError, FreezeOptions, Method, PreparedSnapshot, UnmappedSnapshot};
use crate::frozen::fixed::{self, StillDevice};
use crate::frozen::reflink::{self, FileClone};
use crate::frozen::still_file::StillFile;
use crate::frozen::{FrozenImage, quiesce};
use crate::generation::GenerationClock;
use crate::layers::{FileExtents, Layers, VolumeKind};
use crate::probe;
use crate::sys::file_system::{self, FileSystemType};
use crate::sys::lease;

/// What a freeze is done with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) options: &'a FreezeOptions,
    pub(super) layers: &'a Arc<Layers>,
    pub(super) clock: &'a Arc<GenerationClock>,
}

/// How a volume is going to be frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// By a lease, which stays.
    Quiesce,
    /// By a clone.
    Clone,
    /// As the still file that it is.
    StillFile,
    /// As the still device that it is.
    StillDevice,
    /// By a snapshot of the logical volume that it is.
    Snapshot,
}

/// A volume that was opened.
pub(super) struct Opened<'a> {
    pub(super) path: &'a Path,
    pub(super) file: File,
    pub(super) way: Way,
    /// Where it is frozen by one: the snapshot that is about to be taken.
    snapshot: Option<PreparedSnapshot>,
}

/// A volume that is held as far as it can be by itself.
pub(super) enum Held<'a> {
    File(StillFile<'a>),
    Device(StillDevice<'a>),
    Clone(Cloned<'a>),
    Snapshot(Snapshot<'a>),
}

/// A file and its clone.
pub(super) struct Cloned<'a> {
    path: &'a Path,
    source: File,
    /// Whether a lease on the file kept writers out while the clone was taken.
    leased: bool,
    clone: FileClone,
    /// Where the clone lies, if that will be compared.
    before: Option<FileExtents>,
    patch: Option<Patch>,
}

/// A logical volume, and the snapshot of it once that is taken.
pub(super) struct Snapshot<'a> {
    path: &'a Path,
    /// Of the file systems that are mounted from it.
    mounts: Vec<File>,
    prepared: Option<PreparedSnapshot>,
    taken: Option<UnmappedSnapshot>,
}

impl<'a> Opened<'a> {
    /// Opens a volume, and has what is dirty written back, which may take long.
    pub(super) fn new(path: &'a Path, options: &FreezeOptions, layers: &Layers) -> Result<Self, FreezeError> {
        let file = freeze::open(path)?;
        let not_mapped = |source| FreezeError::Map {
            path: path.to_owned(),
            source,
        };
        let kind = layers.kind(&file).map_err(not_mapped)?;
        let way = match (options.method, kind) {
            (Method::Auto, VolumeKind::File) if can_clone(path, &file, options) => Way::Clone,
            (Method::Reflink, VolumeKind::File | VolumeKind::DeclaredDisk) => Way::Clone,
            (Method::Auto, VolumeKind::File)
            | (Method::Quiesce, VolumeKind::File | VolumeKind::DeclaredDisk) => Way::Quiesce,
            (Method::Auto, VolumeKind::DeclaredDisk)
            | (Method::Static, VolumeKind::File | VolumeKind::DeclaredDisk) => Way::StillFile,
            (Method::Static, VolumeKind::BlockDevice) => Way::StillDevice,
            (Method::Auto, VolumeKind::BlockDevice) if options.assume_exclusive => Way::StillDevice,
            _ => Way::Snapshot,
        };
        if kind != VolumeKind::BlockDevice {
            // Ahead of the window. That it fails shows again when it counts.
            let _ = file.sync_data();
        }
        let snapshot = match way {
            Way::Snapshot => Some(freeze::prepare_snapshot(path, &file, kind, options)?),
            _ => None,
        };
        Ok(Self {
            path,
            file,
            way,
            snapshot,
        })
    }

    /// Holds the volume; of a set of several, a file that is cloned is leased for as long as that takes, where it can be.
    pub(super) fn hold(self, several: bool, means: Means<'_>) -> Result<Held<'a>, FreezeError> {
        let options = means.options;
        let alone = options.assume_exclusive;
        Ok(match self.way {
            Way::Quiesce => Held::File(quiesce::hold(
                self.path,
                self.file,
                alone,
                options.ledger.as_ref(),
            )?),
            Way::StillFile => Held::File(fixed::hold_file(self.path, self.file, alone)?),
            Way::StillDevice => Held::Device(fixed::hold_device(self.path, alone)?),
            Way::Clone => {
                // The clone is of this instant, so the lease comes first.
                let leased = several && lease::take_read(&self.file).is_ok();
                let clone_dir = options.clone_dir.as_deref();
                let ledger = options.ledger.as_ref();
                Held::Clone(Cloned {
                    path: self.path,
                    clone: reflink::take(self.path, &self.file, clone_dir, ledger)?,
                    source: self.file,
                    leased,
                    before: None,
                    patch: None,
                })
            }
            Way::Snapshot => Held::Snapshot(Snapshot {
                mounts: if several {
                    mounts::of(&self.file).map_err(|source| FreezeError::Map {
                        path: self.path.to_owned(),
                        source,
                    })?
                } else {
                    Vec::new()
                },
                path: self.path,
                prepared: self.snapshot,
                taken: None,
            }),
        })
    }
}

impl Held<'_> {
    /// What holds it still by itself; `None`: nothing does.
    pub(super) fn by_itself(&self) -> Option<HeldBy> {
        match self {
            Self::File(file) if file.is_leased() => Some(HeldBy::Lease),
            Self::Device(device) if device.is_read_only() => Some(HeldBy::ReadOnly),
            Self::File(_) | Self::Device(_) => Some(HeldBy::Operator),
            Self::Clone(cloned) => cloned.leased.then_some(HeldBy::Lease),
            Self::Snapshot(_) => None,
        }
    }

    /// Whether a snapshot is taken of it.
    pub(super) fn is_snapshot(&self) -> bool {
        matches!(self, Self::Snapshot(_))
    }

    /// Where the volume is.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Clone(Cloned { path, .. }) | Self::Snapshot(Snapshot { path, .. }) => Some(path),
            Self::File(_) | Self::Device(_) => None,
        }
    }

    /// Files on the file systems whose freeze would hold it still; or why none would.
    pub(super) fn file_systems(&self) -> Result<Vec<&File>, String> {
        match self {
            Self::Clone(cloned) => match file_system::of(&cloned.source) {
                Ok(found) if found.kind == FileSystemType::Xfs => Ok(vec![&cloned.source]),
                Ok(_) => Err("it has writers, and only on XFS can a file be cloned under them".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            Self::Snapshot(snapshot) if snapshot.mounts.is_empty() => {
                Err("no file system is mounted from it here, so nothing holds its writers".to_owned())
            }
            Self::Snapshot(snapshot) => Ok(snapshot.mounts.iter().collect()),
            Self::File(_) | Self::Device(_) => Ok(Vec::new()),
        }
    }

    /// Looks where the clone lies, to compare later.
    pub(super) fn map_clone(&mut self) -> Result<(), FreezeError> {
        let Self::Clone(cloned) = self else { return Ok(()) };
        if cloned.leased {
            // Nobody writes to it until it is released.
            return Ok(());
        }
        let extents = patch::extents(cloned.clone.file());
        cloned.before = Some(extents.map_err(|source| not_mapped(cloned.path, source))?);
        Ok(())
    }

    /// Takes another clone in place of the first.
    pub(super) fn clone_again(&mut self, means: Means<'_>) -> Result<(), FreezeError> {
        let Self::Clone(cloned) = self else { return Ok(()) };
        if !cloned.leased {
            let (clone_dir, ledger) = (means.options.clone_dir.as_deref(), means.options.ledger.as_ref());
            cloned.clone = reflink::take(cloned.path, &cloned.source, clone_dir, ledger)?;
            (cloned.before, cloned.patch) = (None, None);
        }
        Ok(())
    }

    /// While its file system is frozen: what the file became since its clone was taken, as far as `budget` bytes reach; `false` if
    /// they do not.
    pub(super) fn compare(&mut self, budget: &mut usize) -> Result<bool, FreezeError> {
        let Self::Clone(cloned) = self else {
            return Ok(true);
        };
        let Some(before) = &cloned.before else {
            return Ok(true);
        };
        let taken = Patch::of(&cloned.source, before, budget);
        cloned.patch = taken.map_err(|source| not_mapped(cloned.path, source))?;
        Ok(cloned.patch.is_some())
    }

    /// Takes the snapshot, where it is frozen by one. Mapping it can wait.
    pub(super) fn take(&mut self) -> Result<(), FreezeError> {
        if let Self::Snapshot(snapshot) = self
            && let Some(prepared) = snapshot.prepared.take()
        {
            snapshot.taken = Some(prepared.take(snapshot.path)?);
        }
        Ok(())
    }

    /// Whether nobody came in between, as far as it is held by itself.
    pub(super) fn check(&self) -> Result<(), FreezeError> {
        match self {
            Self::File(file) => file.check(),
            Self::Device(device) => device.check(),
            Self::Clone(cloned) if cloned.leased => match lease::held(&cloned.source) {
                Ok(lease::Held::Read) => Ok(()),
                _ => Err(FreezeError::WriterPresent {
                    path: cloned.path.to_owned(),
                }),
            },
            Self::Clone(_) | Self::Snapshot(_) => Ok(()),
        }
    }

    /// The frozen image to be.
    pub(super) fn uuid(&self) -> Option<Uuid> {
        match self {
            Self::File(file) => Some(file.uuid()),
            Self::Device(device) => Some(device.uuid()),
            Self::Clone(cloned) => Some(cloned.clone.uuid()),
            Self::Snapshot(snapshot) => Some(snapshot.taken.as_ref()?.uuid()),
        }
    }

    /// Lets writers of a file that was cloned go on.
    pub(super) fn release(&mut self) {
        if let Self::Clone(cloned) = self
            && std::mem::take(&mut cloned.leased)
            && let Err(error) = lease::release(&cloned.source)
        {
            tracing::warn!(%error, "a lease could not be released; closing the file will");
        }
    }

    /// Maps it, and makes the frozen image, of an instant of the whole set.
    pub(super) fn finish(
        self,
        at: SystemTime,
        means: Means<'_>,
    ) -> Result<Arc<dyn FrozenImage>, FreezeError> {
        let (layers, clock) = (means.layers, means.clock);
        Ok(match self {
            Self::File(mut file) => {
                file.set_instant(at);
                Arc::new(file.freeze(layers, clock)?)
            }
            Self::Device(mut device) => {
                device.set_instant(at);
                Arc::new(device.freeze(layers, clock)?)
            }
            Self::Clone(mut cloned) => {
                match cloned.patch.take() {
                    Some(patch) if !patch.is_empty() => {
                        tracing::info!(volume = %cloned.path.display(), bytes = patch.bytes(),
                            "written to between its clone and the freeze: put into the clone");
                        cloned.clone.amend(at, |clone| patch.apply(clone))?;
                    }
                    _ => cloned.clone.set_instant(at),
                }
                Arc::new(cloned.clone.freeze(layers, clock)?)
            }
            Self::Snapshot(snapshot) => {
                let mut taken = snapshot.taken.ok_or_else(|| FreezeError::Apart {
                    path: snapshot.path.to_owned(),
                    why: "it was not taken".to_owned(),
                })?;
                taken.set_instant(at);
                taken.finish(snapshot.path, layers, clock)?
            }
        })
    }
}

/// One file system is frozen once, however many files lie in it.
pub(super) fn one_each<'f>(files: impl IntoIterator<Item = &'f File>) -> io::Result<Vec<&'f File>> {
    let mut seen = Vec::new();
    let mut distinct = Vec::new();
    for file in files {
        let device = file.metadata()?.dev();
        if !seen.contains(&device) {
            seen.push(device);
            distinct.push(file);
        }
    }
    Ok(distinct)
}

/// Whether the file system can; that clones are to go where they cannot is an error, and is said when it is tried.
fn can_clone(path: &Path, file: &File, options: &FreezeOptions) -> bool {
    let beside = reflink::parent(path);
    match probe::can_clone(file, options.clone_dir.as_deref().unwrap_or(&beside)) {
        Ok(()) => true,
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::CrossesDevices | io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
        ),
    }
}

fn not_mapped(path: &Path, source: io::Error) -> FreezeError {
    FreezeError::Map {
        path: path.to_owned(),
        source,
    }
}
