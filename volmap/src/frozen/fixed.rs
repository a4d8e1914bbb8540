//! `static`: what is frozen already. An array snapshot, a detached or read-only device, a file that nobody writes to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use nix::libc;
use uuid::Uuid;

use super::hold::{DeviceHold, Hold};
use super::pinned::{Frozen, PinnedImage};
use super::still_file::{Immutability, StillFile};
use super::{Attestation, Description, FreezeError, Stability, Strength};
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
pub(crate) fn freeze_file(
    path: &Path,
    file: File,
    assume_exclusive: bool,
    layers: &Layers,
    clock: &GenerationClock,
) -> Result<PinnedImage, FreezeError> {
    StillFile::held(
        METHOD,
        STRENGTH,
        path,
        file,
        assume_exclusive,
        Immutability::Found,
    )?
    .freeze(layers, clock)
}

/// Takes a block device as frozen: because it is read-only, or on the operator's word. Nobody can see what another machine writes
/// to it.
///
/// # Errors
/// [`FreezeError::NotWitnessed`], [`FreezeError::DeviceInUse`], or those of mapping.
pub(crate) fn freeze_device(
    path: &Path,
    assume_exclusive: bool,
    layers: &Layers,
    clock: &GenerationClock,
) -> Result<PinnedImage, FreezeError> {
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
    let frozen_at = SystemTime::now();
    let mut graph = StoreGraph::new();
    // Held from before the map: what happens from here on is noticed.
    let hold = DeviceHold::new(file, read_only && !assume_exclusive).map_err(not_mapped)?;
    let mapping = layers.map(&mut graph, hold.file(), path).map_err(not_mapped)?;
    let description = Description {
        uuid: Uuid::new_v4(),
        method: METHOD,
        strength: STRENGTH,
        stability: if graph.reaches_disk() {
            Stability::Pinned
        } else {
            Stability::Opaque
        },
        attestation: Attestation::Unattested,
        frozen_at,
    };
    let frozen = Frozen {
        description,
        hold: Box::new(hold),
        graph,
        mapping,
    };
    Ok(PinnedImage::new(frozen, clock)?)
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
