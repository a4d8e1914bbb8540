//! `reflink`: a clone of an image file that shares its blocks (XFS, btrfs). The volume itself is written to as before.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use uuid::Uuid;

use super::clone_name::CloneName;
use super::hold::{FileHold, Hold};
use super::pinned::PinnedImage;
use super::still_file::{self, Immutability, StillFile};
use super::{FreezeError, Strength};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::leftovers::{FileLeftover, Ledger, Leftover, LeftoverKind, Note};
use crate::processes;
use crate::sys::{clone, inode_flags};

/// Name of the provider.
pub(crate) const METHOD: &str = "reflink";

/// What a clone is good for.
pub(crate) const STRENGTH: Strength = Strength::CrashConsistent;

/// How long a program that is being started may go on having our descriptors.
const FOREIGN_DESCRIPTORS: Duration = Duration::from_secs(2);

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
    /// As it was when nobody could open it for writing any more.
    left_at: LastChange,
}

/// When content and attributes of a file changed last, in seconds and nanoseconds.
type LastChange = [i64; 4];

fn last_change(file: &File) -> io::Result<LastChange> {
    let found = file.metadata()?;
    Ok([
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ])
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
        let clone = FileLeftover::at(LeftoverKind::Clone, &clone_dir, &name, uuid)?;
        ledger.note(&Leftover::File(clone))
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
    let left_at = last_change(&new.open).map_err(failed)?;
    Ok(FileClone {
        new,
        uuid,
        frozen_at,
        made_immutable,
        left_at,
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
        self.left_at = last_change(&self.new.open).map_err(failed)?;
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
        // A lease is refused as long as a writable descriptor is open, so this closes ours; no program is started with it from here on.
        processes::while_none_begins(|| self.new.open = read_only);
        let mut hold = hold_clone(&reader, &clone_path, self.left_at)?;
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

/// Holds a clone that we alone had open for writing. A program that was just started may have that descriptor for a moment yet: its
/// parent goes on when it has a memory of its own (`exec_mmap` in fs/exec.c), and descriptors are closed after that. So the lease is asked
/// for again; a writer that came and went meanwhile has changed the times of the file.
///
/// # Errors
/// [`FreezeError::WriterPresent`]; those of the lease.
fn hold_clone(reader: &File, path: &Path, left_at: LastChange) -> Result<FileHold, FreezeError> {
    let failed = |source| FreezeError::Clone {
        clone: path.to_owned(),
        source,
    };
    let deadline = Instant::now() + FOREIGN_DESCRIPTORS;
    let hold = loop {
        match still_file::hold(reader.try_clone().map_err(failed)?, path, false) {
            Err(FreezeError::WriterPresent { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            held => break held?,
        }
    };
    if last_change(hold.file()).map_err(failed)? != left_at {
        return Err(FreezeError::WriterPresent {
            path: path.to_owned(),
        });
    }
    Ok(hold)
}

/// Where the clones of a volume go if nobody says.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A clone that somebody still has open for writing.
    fn clone_and_writer(directory: &Path) -> (PathBuf, File, LastChange) {
        let path = directory.join("clone");
        fs::write(&path, "before").unwrap();
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        // Some kernels tell times in steps of their clock.
        thread::sleep(Duration::from_millis(50));
        let left_at = last_change(&writer).unwrap();
        (path, writer, left_at)
    }

    #[test]
    fn a_descriptor_that_is_about_to_be_closed_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (path, writer, left_at) = clone_and_writer(directory.path());
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(100));
                drop(writer);
            });
            hold_clone(&File::open(&path).unwrap(), &path, left_at).unwrap();
        });
    }

    #[test]
    fn one_that_stays_or_was_written_through_is_a_writer() {
        let directory = tempfile::tempdir().unwrap();
        let (path, mut writer, left_at) = clone_and_writer(directory.path());
        let reader = File::open(&path).unwrap();
        let refused = |held| matches!(held, Err(FreezeError::WriterPresent { .. }));
        assert!(refused(hold_clone(&reader, &path, left_at)), "it stays");
        writer.write_all(b"more").unwrap();
        drop(writer);
        assert!(refused(hold_clone(&reader, &path, left_at)), "it was changed");
    }
}
