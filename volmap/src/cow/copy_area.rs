//! The copy area of real files and devices: found or made; a file is written once all over, so that every block has its place.
//!
//! It begins with a header that tells our copy areas from other people's data; the slots follow. Nothing in it outlives
//! the frozen images that it serves, nor the agent that filled it: whoever opens it finds all slots free.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use crate::cow::error::CowError;
use crate::cow::holding::OnFull;
use crate::layers::Layers;
use crate::limits::{COPY_AREA_DEFAULT_MIN, COPY_AREA_HEADER, COPY_AREA_MIN, COPY_UNIT, FOREIGN_DATA_PROBE};
use crate::storage::{AlignedBuffer, Backing, Caching, StorageError, StorageFile, at, settle_all};

/// The first bytes of a copy area.
const MAGIC: &[u8; 32] = b"x-volmap copy area, version 1\n\0\0";

/// Where old data is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyAreaSpec {
    /// A file, which is made if it is not there, or a block device.
    pub path: PathBuf,
    /// Bytes. Without it: the size of the device or of the copy area that is there, or else a tenth of the origin, at
    /// least 64 MiB and at most what holds all of the origin.
    pub size: Option<u64>,
    /// What is done when there is no room for old data.
    pub on_full: OnFull,
}

/// A tenth of the origin, at least [`COPY_AREA_DEFAULT_MIN`], and not more than all of it; and the header.
fn default_size(origin: u64) -> u64 {
    let all = origin.div_ceil(COPY_UNIT).max(1);
    let wanted = (origin / 10).max(COPY_AREA_DEFAULT_MIN).div_ceil(COPY_UNIT);
    (all.min(wanted))
        .saturating_mul(COPY_UNIT)
        .saturating_add(COPY_AREA_HEADER)
}

/// Opens or makes the copy area for `origin`, with a place for every block of it.
pub(super) fn prepare(
    spec: &CopyAreaSpec,
    origin: &StorageFile,
    layers: &Layers,
) -> Result<StorageFile, CowError> {
    if let Some(size) = spec.size {
        check_size(size)?;
    }
    let path = &spec.path;
    match path.metadata() {
        Ok(found) => {
            let other = (origin.file.metadata()).map_err(at(&origin.path, "looking it up"))?;
            if is_same(&found, &other) {
                return Err(CowError::CopyAreaIsOrigin { path: path.clone() });
            }
            let area = StorageFile::open(path, Caching::Direct, layers)?;
            refuse_foreign(&area)?;
            lay_out(area, spec.size, origin.size())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let area = StorageFile::create(path, Caching::Direct, layers)?;
            lay_out(area, spec.size, origin.size()).inspect_err(|_| {
                // We made it a moment ago. That it cannot be removed is not the error to tell of.
                let _ = std::fs::remove_file(path);
            })
        }
        Err(error) => Err(at(path, "looking it up")(error).into()),
    }
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    let devices = a.file_type().is_block_device() && b.file_type().is_block_device();
    (a.dev(), a.ino()) == (b.dev(), b.ino()) || (devices && a.rdev() == b.rdev())
}

fn check_size(size: u64) -> Result<(), CowError> {
    if size < COPY_AREA_MIN {
        return Err(CowError::CopyAreaTooSmall {
            size,
            min: COPY_AREA_MIN,
        });
    }
    Ok(())
}

fn lay_out(mut area: StorageFile, asked: Option<u64>, origin: u64) -> Result<StorageFile, CowError> {
    let size = match (asked, area.size()) {
        (Some(size), _) => size,
        (None, 0) => default_size(origin),
        (None, there) => there,
    };
    check_size(size)?;
    settle_all(&mut area, size - size % COPY_UNIT, COPY_UNIT)?;
    // Last, so that an area that was not finished is begun anew.
    let mut header = AlignedBuffer::zeroed(usize::try_from(COPY_AREA_HEADER).expect("64 KiB fit"));
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    area.write_at(0, &header)
        .and_then(|()| area.sync_data())
        .map_err(at(&area.path, "writing the header of the copy area"))?;
    Ok(area)
}

/// Refuses what holds bytes and does not begin as a copy area does. File systems, volume managers and partition tables
/// leave their marks in the first or the last MiB.
fn refuse_foreign(area: &StorageFile) -> Result<(), CowError> {
    let path = &area.path;
    let len = FOREIGN_DATA_PROBE.min(area.size());
    let mut bytes = vec![0; usize::try_from(len).expect("a probe fits")];
    for offset in [0, area.size() - len] {
        area.read_at(offset, &mut bytes)
            .map_err(at(path, "looking for foreign data"))?;
        if offset == 0 && bytes.starts_with(MAGIC) {
            tracing::info!(path = %path.display(), "a copy area of ours: what an earlier agent kept in it is given up");
            return Ok(());
        }
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(StorageError::Foreign {
                path: path.clone(),
                wanted: "copy area",
            }
            .into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_size_is_a_tenth_within_bounds() {
        const MIB: u64 = 1 << 20;
        let units = |bytes: u64| bytes / COPY_UNIT + 1;
        assert_eq!(default_size(0), 2 * COPY_UNIT);
        assert_eq!(default_size(1), 2 * COPY_UNIT);
        assert_eq!(default_size(MIB + 1) / COPY_UNIT, units(MIB) + 1);
        assert_eq!(default_size(64 * MIB) / COPY_UNIT, units(64 * MIB));
        assert_eq!(default_size(640 * MIB) / COPY_UNIT, units(64 * MIB));
        assert_eq!(default_size(6400 * MIB) / COPY_UNIT, units(640 * MIB));
        assert!(default_size(u64::MAX) > u64::MAX / 11);
    }

    #[test]
    fn size_limit_is_exact() {
        assert!(check_size(COPY_AREA_MIN).is_ok());
        assert!(check_size(COPY_AREA_MIN + 1).is_ok());
        assert!(matches!(
            check_size(COPY_AREA_MIN - 1),
            Err(CowError::CopyAreaTooSmall { .. })
        ));
        assert!(check_size(0).is_err());
    }
}
