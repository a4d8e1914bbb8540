//! A file that the agents of one machine take turns by, and that tells the next what the last one held.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// First line of a file that says something.
const TITLE: &str = "volmap metadata snapshot";

/// What an agent had taken, or was about to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    Nothing,
    /// The message was about to be sent.
    Soon,
    /// The metadata snapshot with its superblock in this block.
    Root(u64),
}

/// The file of one pool, locked until it is closed, however that happens.
#[derive(Debug)]
pub(super) struct RunFile {
    file: File,
}

impl RunFile {
    /// Opens and locks the file of the pool with this UUID; `None` where another agent has it. The file is left there at the end: who
    /// removed it could remove one that somebody locked meanwhile. The run directory does not outlive the machine's uptime.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn lock(run_directory: &Path, pool: &str) -> io::Result<Option<Self>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_directory)?;
        let name = format!("thin-pool.{}", utf8_percent_encode(pool, NON_ALPHANUMERIC));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(run_directory.join(name))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// What it says. What cannot be read says nothing: nothing is released on a guess.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn taken(&mut self) -> io::Result<Taken> {
        let mut text = String::new();
        self.file.rewind()?;
        (&self.file).take(256).read_to_string(&mut text)?;
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Ok(Taken::Nothing);
        }
        let root = |line: &str| line.strip_prefix("root ")?.parse().ok();
        Ok(match lines.next() {
            Some("soon") => Taken::Soon,
            Some(line) => root(line).map_or(Taken::Nothing, Taken::Root),
            None => Taken::Nothing,
        })
    }

    /// Has it say something else.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn write(&mut self, taken: Taken) -> io::Result<()> {
        let text = match taken {
            Taken::Nothing => String::new(),
            Taken::Soon => format!("{TITLE}\nsoon\n"),
            Taken::Root(root) => format!("{TITLE}\nroot {root}\n"),
        };
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_is_read_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made");
        let lock = || RunFile::lock(&directory, "LVM-abc/-tpool").unwrap();
        for taken in [Taken::Root(u64::MAX), Taken::Soon, Taken::Root(7), Taken::Nothing] {
            let mut file = lock().unwrap();
            assert!(lock().is_none(), "one at a time");
            file.write(taken).unwrap();
            drop(file);
            assert_eq!(lock().unwrap().taken().unwrap(), taken);
        }
        assert!(RunFile::lock(&directory, "LVM-abd/-tpool").unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        drop(RunFile::lock(directory.path(), "p").unwrap());
        let path = directory.path().join("thin-pool.p");
        for text in [
            "",
            "another\nroot 7\n",
            "volmap metadata snapshot\nroot x\n",
            "volmap metadata snapshot\n",
        ] {
            fs::write(&path, text).unwrap();
            let mut file = RunFile::lock(directory.path(), "p").unwrap().unwrap();
            assert_eq!(file.taken().unwrap(), Taken::Nothing, "{text}");
        }
    }
}
