//! `reflink`: a clone of an image file that shares its blocks (XFS, btrfs). The volume itself is written to as before.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;
use uuid::Uuid;

use super::clone_name::CloneName;
use super::pinned::PinnedImage;
use super::still_file::{self, Immutability, StillFile};
use super::{FreezeError, Strength};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::leftovers::{Ledger, Leftover, LeftoverKind, Note};
use crate::processes;
use crate::sys::{clone, inode_flags};

/// Name of the provider.
pub(crate) const METHOD: &str = "reflink";

/// What a clone is good for.
pub(crate) const STRENGTH: Strength = Strength::CrashConsistent;

/// A new clone, removed again unless the freeze gets to the end.
struct NewClone {
    path: PathBuf,
    /// To take the flag back by, whatever has the name by then.
    open: File,
    kept: bool,
    /// What says on disk that it is there.
    note: Option<Note>,
}

impl Drop for NewClone {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Unlinking wants it cleared; on file systems that have no such flag there is nothing to clear.
        let _ = inode_flags::set_immutable(&self.open, false);
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, clone = %self.path.display(), "a clone could not be removed: use chattr -i and rm");
            if let Some(note) = self.note.take() {
                note.keep();
            }
        }
    }
}

/// A clone of a file as it was at one instant, not mapped yet.
pub(crate) struct FileClone {
    new: NewClone,
    uuid: Uuid,
    frozen_at: SystemTime,
    made_immutable: bool,
}

/// Clones the file at `path` into `clone_dir`, or beside itself.
///
/// # Errors
/// [`FreezeError::CloneUnsupported`], [`FreezeError::CloneElsewhere`], [`FreezeError::Clone`].
pub(crate) fn take(
    path: &Path,
    source: &File,
    clone_dir: Option<&Path>,
    ledger: Option<&Arc<Ledger>>,
) -> Result<FileClone, FreezeError> {
    let uuid = Uuid::new_v4();
    let clone_dir = clone_dir.map_or_else(|| parent(path), Path::to_owned);
    let clone_path = clone_dir.join(CloneName::of(path, uuid).to_file_name());
    let failed = |error: io::Error| FreezeError::Clone {
        clone: clone_path.clone(),
        source: error,
    };
    let noted = |ledger: &Arc<Ledger>| {
        let name = CloneName::of(path, uuid).to_file_name();
        ledger.note(&Leftover::at(LeftoverKind::Clone, &clone_dir, &name, uuid)?)
    };
    let note = ledger.map(noted).transpose().map_err(failed)?;
    let writable = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&clone_path)
        .map_err(failed)?;
    let new = NewClone {
        path: clone_path.clone(),
        open: writable,
        kept: false,
        note,
    };
    // btrfs shares nothing between a file that is overwritten in place and one that is not.
    if inode_flags::get(source).is_ok_and(inode_flags::InodeFlags::is_nocow) {
        inode_flags::set_nocow(&new.open).map_err(failed)?;
    }
    clone::clone_file(source, &new.open).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS) => {
            FreezeError::CloneUnsupported {
                path: path.to_owned(),
            }
        }
        Some(libc::EXDEV) => FreezeError::CloneElsewhere {
            path: path.to_owned(),
            clone_dir: clone_dir.clone(),
        },
        _ => failed(error),
    })?;
    let frozen_at = SystemTime::now();
    // Immutable before anybody can find it and open it; whoever did already is found by the lease. Failing that, the clone goes
    // over NBD: said when it is pinned.
    let made_immutable = inode_flags::set_immutable(&new.open, true).is_ok();
    Ok(FileClone {
        new,
        uuid,
        frozen_at,
        made_immutable,
    })
}

impl FileClone {
    /// The frozen image to be.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The clone, open for writing by us alone.
    pub(crate) fn file(&self) -> &File {
        &self.new.open
    }

    /// Changes the clone before it is mapped.
    ///
    /// # Errors
    /// [`FreezeError::Clone`].
    pub(crate) fn amend(
        &mut self,
        frozen_at: SystemTime,
        amend: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), FreezeError> {
        let failed = |error: io::Error| FreezeError::Clone {
            clone: self.new.path.clone(),
            source: error,
        };
        if self.made_immutable {
            inode_flags::set_immutable(&self.new.open, false).map_err(failed)?;
        }
        amend(&self.new.open).map_err(failed)?;
        self.made_immutable = inode_flags::set_immutable(&self.new.open, true).is_ok();
        self.frozen_at = frozen_at;
        Ok(())
    }

    /// The instant that it is of, where it is known better.
    pub(crate) fn set_instant(&mut self, frozen_at: SystemTime) {
        self.frozen_at = frozen_at;
    }

    /// Holds the clone, maps it, and makes the frozen image of it.
    ///
    /// # Errors
    /// Those of leases and of mapping.
    pub(crate) fn freeze(
        mut self,
        layers: &Arc<Layers>,
        clock: &Arc<GenerationClock>,
    ) -> Result<PinnedImage, FreezeError> {
        let clone_path = self.new.path.clone();
        let failed = |error: io::Error| FreezeError::Clone {
            clone: clone_path.clone(),
            source: error,
        };
        // By the descriptor, not by the name: this is our file, whatever has the name now.
        let reader = File::open(format!("/proc/self/fd/{}", self.new.open.as_raw_fd())).map_err(failed)?;
        let read_only = reader.try_clone().map_err(failed)?;
        let mut hold = processes::while_none_begins(|| {
            // A lease is refused as long as a writable descriptor is open, so this closes ours.
            self.new.open = read_only;
            still_file::hold(reader, &clone_path, false)
        })?;
        self.new.kept = true;
        hold.owns_clone(clone_path.clone(), self.made_immutable, self.new.note.take());
        StillFile {
            method: METHOD,
            strength: STRENGTH,
            path: &clone_path,
            hold,
            immutability: Immutability::Set,
            uuid: self.uuid,
            frozen_at: self.frozen_at,
            ledger: None,
        }
        .freeze(layers, clock)
    }
}

/// Where the clones of a volume go if nobody says.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
