//! Freezing a volume: which provider takes it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;
use uuid::Uuid;

use crate::frozen::lease_table::LeaseTable;
use crate::frozen::new_snapshot::{PreparedOrigin, TakenSnapshot};
use crate::frozen::{FrozenImage, fixed, lvm_snapshot, lvm_thin, quiesce, reflink};
use crate::generation::GenerationClock;
use crate::layers::{Layers, VolumeKind};
use crate::leftovers::Ledger;
use crate::lvm::{Lvm, LvmError};
use crate::sys::DeviceNumber;

pub use crate::frozen::{FreezeError, SnapshotSize, leftover_clones};

/// How to freeze.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Method {
    /// The best that fits: a file by reflink, as `static` where nothing can be written, else by quiesce; a logical volume by
    /// `lvm-snapshot`, or by `lvm-thin` if it lies in a thin pool; a file declared as a disk, and a block device, as `static`.
    #[default]
    Auto,
    /// A clone of the file.
    Reflink,
    /// The file itself, held free of writers.
    Quiesce,
    /// A classic snapshot of a logical volume.
    LvmSnapshot,
    /// A thin snapshot of a logical volume in a thin pool.
    LvmThin,
    /// What is frozen already.
    Static,
}

/// What an operator says about a freeze.
#[derive(Clone, Debug, Default)]
pub struct FreezeOptions {
    /// How.
    pub method: Method,
    /// Where clones go; beside the volume if not given.
    pub clone_dir: Option<PathBuf>,
    /// How large the snapshot of a logical volume is; a tenth of it if not given, at least 64 MiB.
    pub snapshot_size: Option<SnapshotSize>,
    /// The operator's word that nobody writes to the volume while it is frozen, where nothing would notice.
    pub assume_exclusive: bool,
    /// Where what a crash would leave behind is written down first.
    pub ledger: Option<Arc<Ledger>>,
}

const FOR_VOLUMES: &str = "it is a file, and this is for logical volumes: reflink and quiesce are for files";
const FOR_FILES: &str =
    "it is a block device, and this is for files: lvm-snapshot, lvm-thin and static are for devices";

/// Freezes the volume at `path`. Dropping the frozen image thaws it.
///
/// # Errors
/// [`FreezeError`]; nothing is left behind then.
pub fn freeze(
    path: &Path,
    options: &FreezeOptions,
    layers: &Arc<Layers>,
    clock: &Arc<GenerationClock>,
) -> Result<Arc<dyn FrozenImage>, FreezeError> {
    let file = open(path)?;
    let kind = layers.kind(&file).map_err(|source| FreezeError::Open {
        path: path.to_owned(),
        source,
    })?;
    match kind {
        VolumeKind::File | VolumeKind::DeclaredDisk => freeze_file(path, file, kind, options, layers, clock),
        VolumeKind::BlockDevice => freeze_device(path, &file, options, layers, clock),
    }
}

fn freeze_file(
    path: &Path,
    file: File,
    kind: VolumeKind,
    options: &FreezeOptions,
    layers: &Arc<Layers>,
    clock: &Arc<GenerationClock>,
) -> Result<Arc<dyn FrozenImage>, FreezeError> {
    let alone = options.assume_exclusive;
    let ledger = options.ledger.as_ref();
    let by_clone =
        |file: &File| reflink::take(path, file, options.clone_dir.as_deref(), ledger)?.freeze(layers, clock);
    let by_hold = |file: File| quiesce::hold(path, file, alone, ledger)?.freeze(layers, clock);
    let image = match options.method {
        Method::Auto if kind == VolumeKind::File => match by_clone(&file) {
            Err(FreezeError::CloneUnsupported { .. }) => by_hold(file),
            // In a read-only snapshot, say: nothing can be made there, and nothing be changed.
            Err(FreezeError::Clone { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                fixed::hold_file(path, file, alone)?.freeze(layers, clock)
            }
            other => other,
        },
        Method::Reflink => by_clone(&file),
        Method::Quiesce => by_hold(file),
        Method::Auto | Method::Static => fixed::hold_file(path, file, alone)?.freeze(layers, clock),
        Method::LvmSnapshot => Err(unfit(path, lvm_snapshot::METHOD, FOR_VOLUMES)),
        Method::LvmThin => Err(unfit(path, lvm_thin::METHOD, FOR_VOLUMES)),
    };
    Ok(Arc::new(image?))
}

fn freeze_device(
    path: &Path,
    file: &File,
    options: &FreezeOptions,
    layers: &Arc<Layers>,
    clock: &Arc<GenerationClock>,
) -> Result<Arc<dyn FrozenImage>, FreezeError> {
    let alone = options.assume_exclusive;
    match options.method {
        Method::Static => {}
        Method::Auto if alone => {}
        _ => {
            return prepare_snapshot(path, file, VolumeKind::BlockDevice, options)?
                .take(path)?
                .finish(path, layers, clock);
        }
    }
    Ok(Arc::new(fixed::hold_device(path, alone)?.freeze(layers, clock)?))
}

/// A logical volume of which a snapshot is about to be taken. Everything that takes its time is done before that, or after.
pub(crate) struct PreparedSnapshot(PreparedOrigin);

/// A snapshot of a logical volume that is not mapped yet.
pub(crate) struct UnmappedSnapshot {
    taken: TakenSnapshot,
    is_thin: bool,
}

/// Looks whether a volume is a logical one of which a snapshot can be taken as `options` want it.
///
/// # Errors
/// [`FreezeError`]: why not.
pub(crate) fn prepare_snapshot(
    path: &Path,
    file: &File,
    kind: VolumeKind,
    options: &FreezeOptions,
) -> Result<PreparedSnapshot, FreezeError> {
    let method = match options.method {
        Method::Auto => auto_for_device(path, file)?,
        method => method,
    };
    match method {
        Method::LvmSnapshot if kind != VolumeKind::BlockDevice => {
            Err(unfit(path, lvm_snapshot::METHOD, FOR_VOLUMES))
        }
        Method::LvmThin if kind != VolumeKind::BlockDevice => Err(unfit(path, lvm_thin::METHOD, FOR_VOLUMES)),
        Method::LvmSnapshot => lvm_snapshot::prepare(path, file, options.snapshot_size),
        Method::LvmThin => lvm_thin::prepare(path, file),
        Method::Reflink => Err(unfit(path, reflink::METHOD, FOR_FILES)),
        Method::Quiesce => Err(unfit(path, quiesce::METHOD, FOR_FILES)),
        Method::Auto | Method::Static => Err(unfit(path, fixed::METHOD, "it is no snapshot's origin")),
    }
    .map(PreparedSnapshot)
}

impl PreparedSnapshot {
    /// Takes the snapshot: one command of LVM's, for which writers may be waiting.
    ///
    /// # Errors
    /// [`FreezeError::Lvm`].
    pub(crate) fn take(self, path: &Path) -> Result<UnmappedSnapshot, FreezeError> {
        let is_thin = self.0.is_thin();
        let taken = self.0.take(path)?;
        Ok(UnmappedSnapshot { taken, is_thin })
    }
}

impl UnmappedSnapshot {
    /// The frozen image to be.
    pub(crate) fn uuid(&self) -> Uuid {
        self.taken.uuid()
    }

    /// Of a set: when all of it was taken.
    pub(crate) fn set_instant(&mut self, instant: SystemTime) {
        self.taken.set_instant(instant);
    }

    /// Maps it, and makes the frozen image of it.
    ///
    /// # Errors
    /// [`FreezeError`]; the snapshot is removed then.
    pub(crate) fn finish(
        self,
        path: &Path,
        layers: &Arc<Layers>,
        clock: &Arc<GenerationClock>,
    ) -> Result<Arc<dyn FrozenImage>, FreezeError> {
        Ok(if self.is_thin {
            Arc::new(lvm_thin::finish(path, self.taken, layers, clock)?)
        } else {
            Arc::new(lvm_snapshot::finish(path, self.taken, layers, clock)?)
        })
    }
}

/// What `auto` takes for a block device: a live one has to be a logical volume.
fn auto_for_device(path: &Path, file: &File) -> Result<Method, FreezeError> {
    let by_lvm = |source| FreezeError::Lvm {
        path: path.to_owned(),
        source,
    };
    let volume = match Lvm::behind(device_number(path, file)?) {
        Ok(volume) => volume,
        // Not root: nobody could freeze it by LVM either.
        Err(LvmError::DeviceMapper(_)) => None,
        Err(error) => return Err(by_lvm(error)),
    };
    match volume {
        Some((_, volume)) if lvm_snapshot::fits(&volume).is_ok() => Ok(Method::LvmSnapshot),
        Some((_, volume)) if lvm_thin::fits(&volume).is_ok() => Ok(Method::LvmThin),
        _ => Err(unfit(
            path,
            "auto",
            "a live block device that is no logical volume cannot be frozen from here; serve it as an --origin with a copy area, or \
             freeze a snapshot of it; if it lies still already, say --freeze static (read-only device) or --assume-exclusive",
        )),
    }
}

fn device_number(path: &Path, file: &File) -> Result<DeviceNumber, FreezeError> {
    let metadata = file.metadata().map_err(|source| FreezeError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok(DeviceNumber::from_stat(metadata.rdev()))
}

fn unfit(path: &Path, method: &'static str, why: &'static str) -> FreezeError {
    FreezeError::Unfit {
        path: path.to_owned(),
        method,
        why,
    }
}

/// Opens a volume for reading, without breaking what others hold on it.
pub(crate) fn open(path: &Path) -> Result<File, FreezeError> {
    let failed = |source| FreezeError::Open {
        path: path.to_owned(),
        source,
    };
    // Without procfs there is no advice; the open below then finds out the hard way.
    if LeaseTable::read().is_ok_and(|leases| leases.holds_for_writing(path)) {
        return Err(FreezeError::HeldForWriting {
            path: path.to_owned(),
        });
    }
    // O_NONBLOCK: a file under somebody's lease, or a FIFO, must not hang us.
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)
}
