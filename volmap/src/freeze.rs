//! Freezing a volume: which provider takes it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use crate::frozen::lease_table::LeaseTable;
use crate::frozen::{FrozenImage, fixed, quiesce, reflink};
use crate::generation::GenerationClock;
use crate::layers::{Layers, VolumeKind};

pub use crate::frozen::{FreezeError, leftover_clones};

/// How to freeze.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Method {
    /// The best that fits: a file by reflink, else by quiesce; a file declared as a disk, and a block device, as `static`.
    #[default]
    Auto,
    /// A clone of the file.
    Reflink,
    /// The file itself, held free of writers.
    Quiesce,
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
    /// The operator's word that nobody writes to the volume while it is frozen, where nothing would notice.
    pub assume_exclusive: bool,
}

/// Freezes the volume at `path`. Dropping the frozen image thaws it.
///
/// # Errors
/// [`FreezeError`]; nothing is left behind then.
pub fn freeze(
    path: &Path,
    options: &FreezeOptions,
    layers: &Layers,
    clock: &Arc<GenerationClock>,
) -> Result<Arc<dyn FrozenImage>, FreezeError> {
    let file = open(path)?;
    let kind = layers.kind(&file).map_err(|source| FreezeError::Open {
        path: path.to_owned(),
        source,
    })?;
    let alone = options.assume_exclusive;
    let by_clone = |file: &File| reflink::freeze(path, file, options.clone_dir.as_deref(), layers, clock);
    let image = match (options.method, kind) {
        (Method::Auto, VolumeKind::File) => match by_clone(&file) {
            Err(FreezeError::CloneUnsupported { .. }) => quiesce::freeze(path, file, alone, layers, clock),
            other => other,
        },
        (Method::Reflink, VolumeKind::File | VolumeKind::DeclaredDisk) => by_clone(&file),
        (Method::Quiesce, VolumeKind::File | VolumeKind::DeclaredDisk) => {
            quiesce::freeze(path, file, alone, layers, clock)
        }
        (Method::Auto, VolumeKind::DeclaredDisk)
        | (Method::Static, VolumeKind::File | VolumeKind::DeclaredDisk) => {
            fixed::freeze_file(path, file, alone, layers, clock)
        }
        (Method::Auto, VolumeKind::BlockDevice) if !alone => Err(FreezeError::Unfit {
            path: path.to_owned(),
            method: "auto",
            why: "a live block device cannot be frozen from here; serve it as an --origin with a copy area, or freeze \
                  a snapshot of it; if it lies still already, say --freeze static (read-only device) or --assume-exclusive",
        }),
        (Method::Auto | Method::Static, VolumeKind::BlockDevice) => {
            fixed::freeze_device(path, alone, layers, clock)
        }
        (method @ (Method::Reflink | Method::Quiesce), VolumeKind::BlockDevice) => Err(FreezeError::Unfit {
            path: path.to_owned(),
            method: if method == Method::Reflink {
                reflink::METHOD
            } else {
                quiesce::METHOD
            },
            why: "it is a block device, and this is for files",
        }),
    };
    Ok(Arc::new(image?))
}

/// Opens a volume for reading, without breaking what others hold on it.
pub(crate) fn open(path: &Path) -> Result<File, FreezeError> {
    let failed = |source| FreezeError::Open {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    // Without procfs there is no advice; the open below then finds out the hard way.
    if LeaseTable::read().is_ok_and(|leases| leases.holds_for_writing(&metadata)) {
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
