//! Where the demo plays: a directory that takes O_DIRECT, and in it the shared disks, files both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{HOLE, SIZE};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::random_below;

/// The directory of the demo.
pub(super) enum Place {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Place {
    pub(super) fn new(keep: Option<&Path>) -> Result<Self> {
        if let Some(directory) = keep {
            fs::create_dir_all(directory).map_err(|e| Error::io("making the directory", directory, e))?;
            takes_direct_io(directory)
                .map_err(|e| Error::io("trying O_DIRECT: choose a directory on a disk", directory, e))?;
            let directory = directory
                .canonicalize()
                .map_err(|e| Error::io("finding the directory", directory, e))?;
            return Ok(Self::Kept(directory));
        }
        let candidates = [std::env::temp_dir(), "/var/tmp".into(), ".".into()];
        for candidate in candidates.iter().filter_map(|path| path.canonicalize().ok()) {
            if takes_direct_io(&candidate).is_ok() {
                let made = tempfile::Builder::new()
                    .prefix("proxy-client-demo-")
                    .tempdir_in(&candidate);
                return made
                    .map(Self::Temporary)
                    .map_err(|e| Error::io("making a directory", &candidate, e));
            }
        }
        Err(Error::new(
            ErrorKind::Usage,
            "no directory here takes O_DIRECT; name one on a disk with --keep DIR",
        ))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }
}

fn takes_direct_io(directory: &Path) -> io::Result<()> {
    let file = tempfile::NamedTempFile::new_in(directory)?;
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(file.path())
        .map(|_| ())
}

/// The two shared disks, files both: a volume with text, noise and a hole; and room for old data. Gives the digest of the volume.
pub(super) fn make_disks(lun: &Path, copy: &Path) -> Result<blake3::Hash> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::io("making a disk", &path, error)
    };
    let volume = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(lun)
        .map_err(failed(lun))?;
    volume.set_len(SIZE).map_err(failed(lun))?;
    let mut chunk = vec![0; 1 << 20];
    for at in (0..SIZE - HOLE).step_by(chunk.len()) {
        for (index, word) in chunk.chunks_exact_mut(8).enumerate() {
            // Every other MiB is noise, the others compress well.
            let noise = (at >> 20) % 2 == 0;
            let value = if noise {
                random_below(u64::MAX)
            } else {
                at + index as u64 % 64
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        volume.write_all_at(&chunk, at).map_err(failed(lun))?;
    }
    volume.sync_all().map_err(failed(lun))?;
    File::create_new(copy).map_err(failed(copy))?;
    digest(lun)
}

pub(super) fn digest(path: &Path) -> Result<blake3::Hash> {
    let failed = |error| Error::io("reading a volume", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        };
    }
}
