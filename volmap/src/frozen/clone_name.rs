//! Names of clones, and clones that an agent left behind when it was killed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::lease_table::LeaseTable;

const SUFFIX: &[u8] = b".frozen";
/// Hyphenated.
const UUID_LEN: usize = 36;
/// Longest name of a file on Linux.
const FILE_NAME_MAX: usize = 255;

/// The name of a clone: `.NAME.UUID.frozen`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CloneName {
    /// The volume's file name, cut where it would be too long.
    volume: OsString,
    uuid: Uuid,
}

impl CloneName {
    /// For the frozen image `uuid` of the volume at `path`.
    pub(crate) fn of(path: &Path, uuid: Uuid) -> Self {
        let name = path.file_name().unwrap_or(OsStr::new("volume")).as_bytes();
        let room = FILE_NAME_MAX - SUFFIX.len() - UUID_LEN - 2;
        Self {
            volume: OsString::from_vec(name[..name.len().min(room)].to_owned()),
            uuid,
        }
    }

    /// The frozen image.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The name of the file.
    pub(crate) fn to_file_name(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.volume);
        name.push(format!(".{}", self.uuid));
        name.push(OsStr::from_bytes(SUFFIX));
        name
    }

    /// What [`CloneName::to_file_name`] made; nothing else.
    pub(crate) fn parse(name: &OsStr) -> Option<Self> {
        let middle = name.as_bytes().strip_prefix(b".")?.strip_suffix(SUFFIX)?;
        let (volume, uuid) = middle.split_at_checked(middle.len().checked_sub(UUID_LEN)?)?;
        let volume = volume.strip_suffix(b".")?;
        Some(Self {
            volume: OsStr::from_bytes(volume).to_owned(),
            uuid: Uuid::try_parse_ascii(uuid).ok()?,
        })
    }
}

/// Clones in a directory that no living agent holds a lease on: left by one that was killed. Remove them by `chattr -i` and `rm`.
///
/// # Errors
/// The directory, or `/proc/locks`, cannot be read.
pub fn leftover_clones(clone_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let leases = LeaseTable::read()?;
    let mut leftover = Vec::new();
    for entry in fs::read_dir(clone_dir)? {
        let entry = entry?;
        if CloneName::parse(&entry.file_name()).is_none() {
            continue;
        }
        // A clone that is removed meanwhile is not left over.
        if let Ok(metadata) = entry.metadata()
            && !leases.holds(&metadata)
        {
            leftover.push(entry.path());
        }
    }
    leftover.sort();
    Ok(leftover)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let uuid = Uuid::from_u128(7);
        for volume in ["/x/disk.img", "a", "/x/.hidden.frozen"] {
            let name = CloneName::of(Path::new(volume), uuid);
            assert_eq!(CloneName::parse(&name.to_file_name()), Some(name));
        }
        let longest = "x".repeat(255);
        assert_eq!(
            CloneName::of(Path::new(&longest), uuid).to_file_name().len(),
            FILE_NAME_MAX
        );
        for other in [
            "disk.img",
            ".frozen",
            ".disk.img.frozen",
            ".00000000-0000-0000-0000-000000000007.frozen",
        ] {
            assert_eq!(CloneName::parse(OsStr::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_clone_under_lease_is_not_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n| {
            let name = CloneName::of(Path::new("d"), Uuid::from_u128(n));
            dir.path().join(name.to_file_name())
        };
        for n in [1, 2] {
            fs::write(path(n), b"").unwrap();
        }
        fs::write(dir.path().join("other"), b"").unwrap();
        let held = fs::File::open(path(1)).unwrap();
        crate::sys::lease::take_read(&held).unwrap();
        assert_eq!(leftover_clones(dir.path()).unwrap(), [path(2)]);
    }
}
