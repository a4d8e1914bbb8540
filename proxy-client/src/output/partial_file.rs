//! A file that is written under `NAME.partial` and gets its name when it is whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as IoErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use crate::error::{Error, ErrorKind, Result};
use crate::file_id::FileId;

/// How often another writer may get in between before we give up.
const ATTEMPTS: usize = 8;

/// A file under construction: locked while it is written, gone if it is dropped before [`Self::commit`].
#[derive(Debug)]
pub(crate) struct PartialFile {
    file: File,
    path: PathBuf,
    partial: PathBuf,
    /// Whether dropping it removes it.
    unfinished: bool,
}

impl PartialFile {
    /// A new file that will be named `path`. A `.partial` file that a dead writer left is replaced; images and restored
    /// volumes hold everything that the volume holds, so only the owner may read them.
    ///
    /// # Errors
    /// [`ErrorKind::OutputExists`]: there is something under either name that may not be replaced. [`ErrorKind::Io`].
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("creating the output", path, error);
        if fs::symlink_metadata(path).is_ok() {
            return Err(
                Error::new(ErrorKind::OutputExists, "there is a file of this name already").at_path(path),
            );
        }
        let Some(name) = path.file_name() else {
            return Err(Error::new(ErrorKind::Usage, "the output has no file name").at_path(path));
        };
        let mut partial_name = OsString::from(name);
        partial_name.push(".partial");
        let partial = path.with_file_name(partial_name);
        for _ in 0..ATTEMPTS {
            let created = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&partial);
            let file = match created {
                Ok(file) => file,
                Err(error) if error.kind() == IoErrorKind::AlreadyExists => {
                    remove_stale(&partial)?;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            // Between creation and lock another writer may take the file for stale: then it is theirs, and the name leads
            // elsewhere.
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            if is_at(&file, &partial) {
                return Ok(Self {
                    file,
                    path: path.into(),
                    partial,
                    unfinished: true,
                });
            }
        }
        Err(live_writer(&partial))
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies until it is whole.
    pub(crate) fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; [`ErrorKind::OutputExists`] when something took the name meanwhile: the whole file then stays under
    /// its `.partial` name.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|error| Error::io("making the output durable", &self.partial, error))?;
        // It is whole now: hours of work are not thrown away for want of a name.
        self.unfinished = false;
        rename_new(&self.partial, &self.path).map_err(|error| {
            let kind = match error.kind() {
                IoErrorKind::AlreadyExists => ErrorKind::OutputExists,
                _ => ErrorKind::Io,
            };
            Error::new(kind, "the output is whole but keeps its .partial name")
                .while_doing("giving it its name")
                .at_path(&self.path)
                .caused_by(error)
        })?;
        sync_directory(&self.path)
            .map_err(|error| Error::io("making the name of the output durable", &self.path, error))
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.unfinished
            && is_at(&self.file, &self.partial)
            && let Err(error) = fs::remove_file(&self.partial)
        {
            tracing::warn!(path = %self.partial.display(), %error, "an unfinished output could not be removed");
        }
    }
}

/// Removes a `.partial` file that no living writer holds.
fn remove_stale(partial: &Path) -> Result<()> {
    let failed = |error| Error::io("replacing a stale output", partial, error);
    let metadata = match fs::symlink_metadata(partial) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.is_file() {
        return Err(Error::new(
            ErrorKind::OutputExists,
            "something that is no file has the .partial name",
        )
        .at_path(partial));
    }
    let stale = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(partial);
    let stale = match stale {
        Ok(stale) => stale,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match stale.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(live_writer(partial)),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    if is_at(&stale, partial) {
        fs::remove_file(partial).map_err(failed)?;
    }
    Ok(())
}

fn live_writer(partial: &Path) -> Error {
    Error::new(ErrorKind::OutputExists, "another process is writing this file").at_path(partial)
}

/// Whether the name leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let Ok(named) = fs::symlink_metadata(path) else {
        return false;
    };
    file.metadata()
        .is_ok_and(|open| FileId::of(&open) == FileId::of(&named))
}

/// Renames without ever replacing anything.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        // Not every file system knows the flag: a hard link does not replace either.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        Err(error) => Err(error.into()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(file: &PartialFile, bytes: &[u8]) {
        let mut file = file.file();
        file.write_all(bytes).unwrap();
    }

    #[test]
    fn it_has_its_name_only_after_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let partial = PartialFile::create(&path).unwrap();
        write(&partial, b"x");
        assert!(!path.exists() && partial.partial_path().exists());
        partial.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn dropped_it_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(PartialFile::create(&dir.path().join("a")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"old").unwrap();
        assert_eq!(
            PartialFile::create(&path).unwrap_err().kind(),
            ErrorKind::OutputExists
        );
        fs::remove_file(&path).unwrap();
        let partial = PartialFile::create(&path).unwrap();
        write(&partial, b"new");
        fs::write(&path, b"old").unwrap();
        assert_eq!(partial.commit().unwrap_err().kind(), ErrorKind::OutputExists);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read(dir.path().join("a.partial")).unwrap(), b"new");
    }

    #[test]
    fn a_stale_partial_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(dir.path().join("a.partial"), b"left by the dead").unwrap();
        let live = PartialFile::create(&path).unwrap();
        assert_eq!(live.file().metadata().unwrap().len(), 0);
        assert_eq!(
            PartialFile::create(&path).unwrap_err().kind(),
            ErrorKind::OutputExists
        );
        write(&live, b"x");
        live.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_symlink_under_the_partial_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, b"p").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("a.partial")).unwrap();
        assert_eq!(
            PartialFile::create(&dir.path().join("a")).unwrap_err().kind(),
            ErrorKind::OutputExists
        );
        assert_eq!(fs::read(&precious).unwrap(), b"p");
    }
}
