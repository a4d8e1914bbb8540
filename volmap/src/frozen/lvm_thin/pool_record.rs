//! What is written down of a pool's metadata snapshot, for whoever comes after an agent that was killed; it outlives a reboot.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// First line of a record.
const TITLE: &str = "volmap metadata snapshot";

/// Length of every record: one is written over the other, so that a crash leaves the one or the other and never none.
const LEN: usize = 64;

/// What an agent had taken, or was about to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    Nothing,
    /// The message was about to be sent.
    Soon,
    /// The metadata snapshot with its superblock in this block.
    Root(u64),
}

/// The record of one pool. Whoever has it holds the lock of the pool.
#[derive(Debug)]
pub(super) struct PoolRecord {
    file: File,
}

impl PoolRecord {
    /// Opens the file of this name, and makes it where there is none.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn open(directory: &Path, name: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(directory.join(name))?;
        if file.metadata()?.len() == 0 {
            File::open(directory)?.sync_all()?;
        }
        Ok(Self { file })
    }

    /// What it says. What cannot be read says nothing: nothing is released on a guess.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn taken(&self) -> io::Result<Taken> {
        let mut bytes = [0; LEN];
        match self.file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Taken::Nothing),
            other => other?,
        }
        let mut lines = str::from_utf8(&bytes).unwrap_or_default().lines();
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

    /// Has it say something else, on stable storage at the return.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn write(&self, taken: Taken) -> io::Result<()> {
        let word = match taken {
            Taken::Nothing => "nothing".to_owned(),
            Taken::Soon => "soon".to_owned(),
            Taken::Root(root) => format!("root {root}"),
        };
        let text = format!("{TITLE}\n{word}\n");
        let mut bytes = [b'\n'; LEN];
        let (said, _) = bytes
            .split_at_mut_checked(text.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        said.copy_from_slice(text.as_bytes());
        self.file.write_all_at(&bytes, 0)?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const ALL: [Taken; 5] = [
        Taken::Root(u64::MAX),
        Taken::Soon,
        Taken::Root(7),
        Taken::Nothing,
        Taken::Root(1 << 40),
    ];

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made");
        let open = || PoolRecord::open(&directory, "p").unwrap();
        assert_eq!(open().taken().unwrap(), Taken::Nothing);
        for taken in ALL {
            open().write(taken).unwrap();
            assert_eq!(open().taken().unwrap(), taken);
        }
    }

    /// A crash between the cut and the write would leave a record that says nothing of what is held.
    #[test]
    fn a_record_is_written_over_and_never_cut_off() {
        let file = File::from(memfd_create("record", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        let record = PoolRecord { file };
        record.write(Taken::Soon).unwrap();
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&record.file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        for taken in ALL {
            record.write(taken).unwrap();
            assert_eq!(record.taken().unwrap(), taken);
        }
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let record = PoolRecord::open(directory.path(), "p").unwrap();
        for text in [
            "",
            "another\nroot 7\n",
            "volmap metadata snapshot\nroot x\n",
            "volmap metadata snapshot\n",
        ] {
            for len in [text.len(), LEN] {
                fs::write(directory.path().join("p"), format!("{text:\n<len$}")).unwrap();
                assert_eq!(record.taken().unwrap(), Taken::Nothing, "{text}");
            }
        }
        fs::write(directory.path().join("p"), "volmap metadata snapshot\nroot 7").unwrap();
        assert_eq!(record.taken().unwrap(), Taken::Nothing, "it was cut off");
    }
}
