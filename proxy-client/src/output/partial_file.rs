//! A file that is written under `NAME.partial` and gets its name when it is whole. Left unfinished it goes, unless it was told to be
//! kept: then somebody can [`PartialFile::reopen`] it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as IoErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use crate::directory::directory_of;
use crate::error::{Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::interrupt::Interrupt;

/// How often another writer may get in between before we give up.
const ATTEMPTS: usize = 8;

/// Bytes per step where a file is written over itself.
const STEP: usize = 1 << 20;

/// A file under construction: locked while it is written, gone if it is dropped before [`Self::commit`].
#[derive(Debug)]
pub(crate) struct PartialFile {
    file: File,
    path: PathBuf,
    partial: PathBuf,
    /// Whether dropping it removes it.
    unfinished: bool,
    name_is_durable: bool,
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
        let partial = partial_name(path)?;
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
                    name_is_durable: false,
                });
            }
        }
        Err(live_writer(&partial))
    }

    /// The unfinished file that will be named `path`, left by a writer that has ended. It is kept, whatever happens.
    ///
    /// # Errors
    /// [`ErrorKind::OutputExists`]: there is a file of this name already, or the unfinished one has a living writer.
    /// [`ErrorKind::Io`].
    pub(crate) fn reopen(path: &Path) -> Result<Self> {
        let partial = partial_name(path)?;
        if fs::symlink_metadata(path).is_ok() {
            let message = "there is a file of this name already: nothing is left to resume";
            return Err(Error::new(ErrorKind::OutputExists, message).at_path(path));
        }
        let failed = |error| Error::io("opening the unfinished output", &partial, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
            .open(&partial)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::new(ErrorKind::Usage, "this is no file").at_path(&partial));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(live_writer(&partial)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if !is_at(&file, &partial) {
            return Err(live_writer(&partial));
        }
        Ok(Self {
            file,
            path: path.into(),
            partial,
            unfinished: false,
            name_is_durable: false,
        })
    }

    /// From now on the file is kept if it is dropped unfinished.
    pub(crate) fn keep_unfinished(&mut self) {
        self.unfinished = false;
    }

    /// Keeps the file if it is dropped unfinished, over a crash of the machine too.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn make_name_durable(&mut self) -> Result<()> {
        self.keep_unfinished();
        if !self.name_is_durable {
            sync_directory(&self.partial)
                .map_err(|error| Error::io("making the name of the output durable", &self.partial, error))?;
            self.name_is_durable = true;
        }
        Ok(())
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies until it is whole.
    pub(crate) fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// Writes what is in the file from byte `from` on over itself, and makes it durable. What another writer left may be in the page
    /// cache only, and look clean there: a sync that failed says so once, and drops what it could not write. Only what is written again
    /// is covered by the next sync. What was read meanwhile may have been the medium's, so the file has to be examined after this.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::Interrupted`].
    pub(crate) fn write_anew(&self, from: u64, interrupt: &Interrupt) -> Result<()> {
        let failed = |error| Error::io("writing the output anew", &self.partial, error);
        let mut buffer = vec![0; STEP];
        let mut at = from;
        loop {
            interrupt.check()?;
            let read = match self.file.read_at(&mut buffer, at) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == IoErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            self.file.write_all_at(&buffer[..read], at).map_err(failed)?;
            at += read as u64;
        }
        self.file.sync_all().map_err(failed)
    }

    /// Cuts the file to its first `length` bytes: what follows may not be on the medium.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn cut(&self, length: u64) -> Result<()> {
        self.file
            .set_len(length)
            .map_err(|error| Error::io("cutting the unfinished output", &self.partial, error))
    }

    /// What removes the file while another thread writes it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn remover(&self) -> Result<Remover> {
        let file = self
            .file
            .try_clone()
            .map_err(|error| Error::io("opening the unfinished output", &self.partial, error))?;
        Ok(Remover {
            file,
            partial: self.partial.clone(),
        })
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// Those of [`Self::give_name`]; [`ErrorKind::Io`] when it could not be made durable.
    pub(crate) fn commit(self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|error| Error::io("making the output durable", &self.partial, error))?;
        self.give_name()
    }

    /// Gives it its name: it is whole and durable.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; [`ErrorKind::OutputExists`] when something took the name meanwhile: the whole file then stays under
    /// its `.partial` name.
    pub(crate) fn give_name(mut self) -> Result<()> {
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

/// Removes an unfinished file whose writer may be stuck in the system.
#[derive(Debug)]
pub struct Remover {
    /// The writer's own: it needs no lock, for it has it.
    file: File,
    partial: PathBuf,
}

impl Remover {
    /// Removes the file, unless its name leads to another one.
    pub(crate) fn remove(&self) {
        if !is_at(&self.file, &self.partial) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.partial) {
            tracing::warn!(path = %self.partial.display(), %error, "an unfinished output could not be removed, and is emptied");
            if let Err(error) = self.file.set_len(0) {
                tracing::error!(path = %self.partial.display(), %error, "it could not be emptied either: do not resume it");
            }
        }
    }
}

/// The name of an output until it is whole.
///
/// # Errors
/// [`ErrorKind::Usage`]: the output has no file name.
pub(crate) fn partial_name(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorKind::Usage, "the output has no file name").at_path(path));
    };
    let mut partial_name = OsString::from(name);
    partial_name.push(".partial");
    Ok(path.with_file_name(partial_name))
}

/// Removes a `.partial` file that no living writer holds.
pub(crate) fn remove_stale(partial: &Path) -> Result<()> {
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
    File::open(directory_of(path))?.sync_all()
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

    /// Its writer has the lock, and somebody else may have taken the name.
    #[test]
    fn a_remover_takes_its_own_file_whoever_holds_it_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut live = PartialFile::create(&path).unwrap();
        live.keep_unfinished();
        let remover = live.remover().unwrap();
        remover.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let other = PartialFile::create(&path).unwrap();
        remover.remove();
        assert!(is_at(other.file(), other.partial_path()));
    }

    #[test]
    fn what_is_written_anew_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let partial = PartialFile::create(&dir.path().join("a")).unwrap();
        let bytes: Vec<u8> = (0..STEP * 2 + 5)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        write(&partial, &bytes);
        for from in [0, 7, bytes.len()] {
            partial.write_anew(from as u64, &Interrupt::default()).unwrap();
            assert!(fs::read(partial.partial_path()).unwrap() == bytes);
        }
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
