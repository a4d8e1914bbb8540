//! What is there of what was written down, and taking it away.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use super::open_files::is_open;
use super::record::{FileLeftover, LeftoverKind};
use crate::frozen::clone_name::CloneName;
use crate::frozen::lease_table::LeaseTable;
use crate::sys::inode_flags;

/// What is there of a leftover.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Nothing any more.
    Gone,
    /// It is there, and nobody uses it.
    There,
    /// Somebody holds a lease on it: an agent that lives.
    InUse,
    /// Something else has its name, or it cannot be looked at: a person's business.
    Unclear(String),
}

impl FileLeftover {
    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// `/proc/locks` cannot be read: nobody knows what is in use then.
    pub fn find(&self) -> io::Result<Finding> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.missing()),
            Err(error) => return Ok(Finding::Unclear(error.to_string())),
            Ok(metadata) => metadata,
        };
        if !self.names(&metadata) {
            return Ok(Finding::Unclear("another file has its name now".to_owned()));
        }
        // Between its making and its lease a clone is only open.
        let is_open = self.kind == LeftoverKind::Clone && is_open(&metadata);
        if is_open || LeaseTable::read()?.holds(&metadata) {
            return Ok(Finding::InUse);
        }
        Ok(match self.kind {
            LeftoverKind::Clone => Finding::There,
            LeftoverKind::Immutable(_) => match open(&self.path).and_then(|file| inode_flags::get(&file)) {
                Ok(flags) if flags.is_immutable() => Finding::There,
                Ok(_) => Finding::Gone,
                Err(error) => Finding::Unclear(error.to_string()),
            },
        })
    }

    /// Nothing has its name: because it is gone, or because all of its directory is elsewhere.
    fn missing(&self) -> Finding {
        let directory = self.path.parent().map(fs::metadata);
        match directory {
            Some(Ok(directory)) if directory.ino() == self.directory => Finding::Gone,
            _ => Finding::Unclear("its directory is not there: is the file system mounted?".to_owned()),
        }
    }

    /// Takes it away, if it is [`Finding::There`] now.
    ///
    /// # Errors
    /// `ResourceBusy`: it is in use, or unclear. Of the file system.
    pub fn remove(&self) -> io::Result<()> {
        match self.find()? {
            Finding::Gone => return Ok(()),
            Finding::There => {}
            Finding::InUse => return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is in use")),
            Finding::Unclear(why) => return Err(io::Error::new(io::ErrorKind::ResourceBusy, why)),
        }
        let file = open(&self.path)?;
        // What was opened, and not what has the name by now.
        if !self.names(&file.metadata()?) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another file has its name now",
            ));
        }
        match inode_flags::get(&file) {
            Ok(flags) if flags.is_immutable() => inode_flags::set_immutable(&file, false)?,
            // A file system without flags has none to take away.
            _ => {}
        }
        match self.kind {
            LeftoverKind::Clone => fs::remove_file(&self.path),
            LeftoverKind::Immutable(_) => Ok(()),
        }
    }

    fn names(&self, metadata: &Metadata) -> bool {
        let is_ours = match self.kind {
            LeftoverKind::Clone => is_clone(&self.path),
            LeftoverKind::Immutable(inode) => metadata.ino() == inode,
        };
        is_ours && metadata.is_file()
    }
}

/// Clones in a directory that nobody holds a lease on, whether they were written down or not.
///
/// # Errors
/// The directory, or `/proc/locks`, cannot be read.
pub fn clones_in(directory: &Path) -> io::Result<Vec<FileLeftover>> {
    let clones = crate::frozen::leftover_clones(directory)?;
    let mut leftovers = Vec::new();
    for clone in clones {
        if let Some(file_name) = clone.file_name()
            && let Some(name) = CloneName::parse(file_name)
        {
            leftovers.push(FileLeftover::at(
                LeftoverKind::Clone,
                directory,
                file_name,
                name.uuid(),
            )?);
        }
    }
    Ok(leftovers)
}

fn is_clone(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| CloneName::parse(name).is_some())
}

/// Not through a symbolic link, and without waiting for whoever holds a lease.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::sys::lease;

    fn clone_in(directory: &Path) -> FileLeftover {
        let frozen = Uuid::from_u128(7);
        let name = CloneName::of(Path::new("vm"), frozen).to_file_name();
        let clone = FileLeftover::at(LeftoverKind::Clone, directory, &name, frozen).unwrap();
        fs::write(&clone.path, b"old").unwrap();
        clone
    }

    #[test]
    fn a_clone_is_removed_unless_somebody_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let clone = clone_in(directory.path());
        let held = File::open(&clone.path).unwrap();
        lease::take_read(&held).unwrap();
        assert_eq!(clone.find().unwrap(), Finding::InUse);
        assert!(clones_in(directory.path()).unwrap().is_empty());
        assert_eq!(clone.remove().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        lease::release(&held).unwrap();
        assert_eq!(clones_in(directory.path()).unwrap().len(), 1);
        assert_eq!(clone.find().unwrap(), Finding::InUse, "it is open");
        drop(held);
        assert_eq!(clone.find().unwrap(), Finding::There);
        clone.remove().unwrap();
        assert_eq!(clone.find().unwrap(), Finding::Gone);
        clone.remove().unwrap();
    }

    #[test]
    fn what_lies_on_a_file_system_that_is_not_mounted_is_not_gone() {
        let mount_point = tempfile::tempdir().unwrap();
        let clone = clone_in(mount_point.path());
        let mounted = mount_point.path().with_extension("elsewhere");
        fs::rename(mount_point.path(), &mounted).unwrap();
        for mount_point_is_there in [false, true] {
            if mount_point_is_there {
                fs::create_dir(mount_point.path()).unwrap();
            }
            assert!(matches!(clone.find().unwrap(), Finding::Unclear(_)));
            assert!(clone.remove().is_err());
        }
        fs::remove_dir_all(mounted).unwrap();
    }

    #[test]
    fn what_is_not_what_was_written_down_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mine = directory.path().join("mine");
        fs::write(&mine, b"precious").unwrap();
        let inode = fs::metadata(&mine).unwrap().ino();
        for kind in [LeftoverKind::Clone, LeftoverKind::Immutable(inode + 1)] {
            let name = mine.file_name().unwrap();
            let wrong = FileLeftover::at(kind, directory.path(), name, Uuid::from_u128(7)).unwrap();
            assert!(matches!(wrong.find().unwrap(), Finding::Unclear(_)), "{kind:?}");
            assert_eq!(wrong.remove().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        }
        let clone = clone_in(directory.path());
        fs::remove_file(&clone.path).unwrap();
        std::os::unix::fs::symlink(&mine, &clone.path).unwrap();
        assert!(clone.remove().is_err());
        assert_eq!(fs::read(&mine).unwrap(), b"precious");
    }
}
