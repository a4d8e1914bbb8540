//! What is written down of one thing, as text.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use uuid::Uuid;

use super::file_system::FrozenFileSystem;
use super::removal::Finding;

/// First line of a record.
pub(super) const TITLE: &str = "volmap leftover, version 1";

/// Something that an agent, or its guardian, leaves behind when it is killed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leftover {
    /// A file, or a flag of one.
    File(FileLeftover),
    /// A file system that may be frozen.
    FileSystem(FrozenFileSystem),
}

impl Leftover {
    /// The text of a record.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::File(leftover) => leftover.to_text(),
            Self::FileSystem(file_system) => file_system.to_text(),
        }
    }

    /// What [`Leftover::to_text`] made; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        FileLeftover::parse(text)
            .map(Self::File)
            .or_else(|| FrozenFileSystem::parse(text).map(Self::FileSystem))
    }

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn find(&self) -> io::Result<Finding> {
        match self {
            Self::File(leftover) => leftover.find(),
            Self::FileSystem(file_system) => file_system.find(),
        }
    }

    /// Takes it away.
    ///
    /// # Errors
    /// Those of [`FileLeftover::remove`] and [`FrozenFileSystem::thaw`].
    pub fn remove(&self) -> io::Result<()> {
        match self {
            Self::File(leftover) => leftover.remove(),
            Self::FileSystem(file_system) => file_system.thaw(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(leftover) => &leftover.path,
            Self::FileSystem(file_system) => &file_system.path,
        }
    }
}

/// What is left over of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftoverKind {
    /// A clone that `reflink` made.
    Clone,
    /// The immutable flag (`+i`) that `quiesce` set on a file of somebody else, with the inode number of that file.
    Immutable(u64),
}

/// A file, or a flag of one, that goes with a frozen image, and stays where the agent is killed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileLeftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Where, absolute and without symbolic links.
    pub path: PathBuf,
    /// The inode number of the directory that it is in: where another one has the path, its file system is not mounted.
    pub directory: u64,
    /// The frozen image that it belongs to.
    pub frozen: Uuid,
}

impl FileLeftover {
    /// Something called `name` in `directory`, which is there now.
    ///
    /// # Errors
    /// Of the file system.
    pub fn at(kind: LeftoverKind, directory: &Path, name: &OsStr, frozen: Uuid) -> io::Result<Self> {
        let directory = fs::canonicalize(directory)?;
        Ok(Self {
            kind,
            path: directory.join(name),
            directory: fs::metadata(&directory)?.ino(),
            frozen,
        })
    }

    fn to_text(&self) -> String {
        let (kind, inode) = match self.kind {
            LeftoverKind::Clone => ("clone", String::new()),
            LeftoverKind::Immutable(inode) => ("immutable", format!("inode {inode}\n")),
        };
        let path = encoded(&self.path);
        let (frozen, directory) = (self.frozen, self.directory);
        format!("{TITLE}\nkind {kind}\n{inode}frozen {frozen}\ndirectory {directory}\npath {path}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != TITLE {
            return None;
        }
        let (mut kind, mut inode, mut frozen, mut directory, mut path) = (None, None, None, None, None);
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "kind" => kind = Some(value),
                "inode" => inode = Some(value.parse().ok()?),
                "frozen" => frozen = Some(value.parse().ok()?),
                "directory" => directory = Some(value.parse().ok()?),
                "path" => path = Some(percent_decode_str(value).collect::<Vec<u8>>()),
                _ => return None,
            }
        }
        Some(Self {
            kind: match (kind?, inode) {
                ("clone", None) => LeftoverKind::Clone,
                ("immutable", Some(inode)) => LeftoverKind::Immutable(inode),
                _ => return None,
            },
            path: PathBuf::from(OsString::from_vec(path?)),
            directory: directory?,
            frozen: frozen?,
        })
    }
}

/// A path may hold any byte, a line feed too.
pub(super) fn encoded(path: &Path) -> impl fmt::Display {
    percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_nothing_else_is() {
        for (kind, path) in [
            (LeftoverKind::Clone, &b"/srv/a b\n\xff"[..]),
            (LeftoverKind::Immutable(u64::MAX), b"/x"),
        ] {
            let leftover = FileLeftover {
                kind,
                path: PathBuf::from(OsString::from_vec(path.to_owned())),
                directory: 128,
                frozen: Uuid::from_u128(7),
            };
            let text = leftover.to_text();
            assert_eq!(Leftover::parse(&text), Some(Leftover::File(leftover)));
            let titled = text.strip_prefix(TITLE).unwrap();
            for cut in 0..text.len() - 1 {
                // A record that was cut off in its path would name another file.
                if Leftover::parse(&text[..cut]).is_some() {
                    assert!(text[..cut].contains("path "), "{cut}");
                }
            }
            assert_eq!(Leftover::parse(&format!("another{titled}")), None);
            assert_eq!(Leftover::parse(&format!("{text}more yes\n")), None);
        }
    }
}
