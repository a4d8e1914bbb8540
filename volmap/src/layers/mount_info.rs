//! `/proc/self/mountinfo`: which file system a device number stands for.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::sys::DeviceNumber;

/// A mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub(super) device: DeviceNumber,
    /// Where it is mounted, with the octal escapes of the kernel.
    pub(super) mount_point: String,
    /// Its type: `xfs`, `ext4`, `fuse.sshfs`.
    pub(super) kind: String,
    /// What it was mounted from, by name, with such escapes too.
    source: String,
    /// The options of the file system itself, the same for all its mounts: `rw,errors=continue`.
    options: String,
}

/// What is mounted somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountedFileSystem {
    /// The type of the file system: `xfs`, `ext4`, `fuse.sshfs`.
    pub kind: String,
    /// The name that it was mounted from, whatever that is by now.
    pub source: PathBuf,
}

/// What is mounted at a path (absolute, without symbolic links): the last mount there, which is the one that is seen. `None`: it is no
/// mount point.
///
/// # Errors
/// procfs cannot be read.
pub fn mount_at(path: &Path) -> io::Result<Option<MountedFileSystem>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts = table.lines().filter_map(Mount::parse);
    let last = mounts.rfind(|mount| unescape(&mount.mount_point) == path);
    Ok(last.map(|mount| MountedFileSystem {
        source: unescape(&mount.source),
        kind: mount.kind,
    }))
}

impl Mount {
    /// The first mount of the file system on `device` that this process can see.
    ///
    /// # Errors
    /// procfs cannot be read.
    pub(super) fn of_device(device: DeviceNumber) -> io::Result<Option<Self>> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(table.lines().filter_map(Self::parse).find(|m| m.device == device))
    }

    /// proc(5): `36 35 98:0 /root /mount rw,noatime master:1 - ext3 /dev/root rw,errors=continue`, with any number of optional
    /// fields before the hyphen.
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let mut file_system = file_system.split(' ');
        Some(Self {
            device: DeviceNumber::parse(mount.next()?)?,
            mount_point: mount.nth(1)?.to_owned(),
            kind: file_system.next()?.to_owned(),
            source: file_system.next().unwrap_or_default().to_owned(),
            options: file_system.next().unwrap_or_default().to_owned(),
        })
    }

    /// Whether its kernel writes to it, after it has looked at its log. A mount that is read-only of one that is not does not matter.
    fn is_written(&self) -> bool {
        let has = |word: &str| self.options.split(',').any(|option| option == word);
        has("rw")
            && !["ro", "norecovery", "noload", "emergency_ro", "shutdown"]
                .into_iter()
                .any(has)
    }
}

/// A path as the kernel writes it: `\040` and the like stand for the bytes that the format needs itself.
fn unescape(text: &str) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| byte == b'\\');
        let meant = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(meant.unwrap_or(byte));
        rest = if meant.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(OsString::from_vec(path))
}

/// Where the file system on a device is mounted, as far as this process can see.
///
/// # Errors
/// procfs cannot be read.
pub(crate) fn mounts_of(device: DeviceNumber) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(Mount::parse);
    Ok(mounts
        .filter(|mount| mount.device == device)
        .map(|mount| unescape(&mount.mount_point))
        .collect())
}

/// A file system that is mounted from a block device.
pub(crate) struct LiveFileSystem {
    /// Its type.
    pub(crate) kind: String,
    /// Whether a freeze has its kernel write out what is in its log only. It does nothing of that for what it does not write to, and that log
    /// may be full: it was mounted with `norecovery`, or is read-only since an error.
    pub(crate) is_written: bool,
}

/// The file system that is mounted from a block device, if this process can see one.
///
/// # Errors
/// procfs cannot be read.
pub(crate) fn file_system_on(device: DeviceNumber) -> io::Result<Option<LiveFileSystem>> {
    Ok(Mount::of_device(device)?.map(|mount| LiveFileSystem {
        is_written: mount.is_written(),
        kind: mount.kind,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_are_skipped() {
        let mount = Mount::parse(
            "36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/x rw,data=journal",
        )
        .unwrap();
        assert_eq!(mount.device, DeviceNumber { major: 98, minor: 0 });
        assert_eq!(
            (mount.mount_point.as_str(), mount.kind.as_str()),
            ("/mnt/a\\040b", "ext4")
        );
        assert_eq!(unescape(&mount.mount_point), PathBuf::from("/mnt/a b"));
        assert_eq!(unescape(&mount.source), PathBuf::from("/dev/x"));
        assert_eq!(unescape("/a\\134040\\"), PathBuf::from("/a\\040\\"));
        assert!(Mount::parse("36 35 98:0 / /mnt rw - xfs /dev/x rw").is_some());
        assert_eq!(Mount::parse("36 35 98:0 / /mnt rw xfs"), None);
    }

    #[test]
    fn what_its_kernel_does_not_write_to_has_a_log_that_a_freeze_leaves_as_it_is() {
        let is_written = |options: &str| {
            let line = format!("36 35 98:0 / /mnt ro,noatime shared:1 - xfs /dev/x {options}");
            Mount::parse(line.trim_end()).unwrap().is_written()
        };
        assert!(is_written("rw,attr2,inode64"));
        assert!(is_written("rw"));
        for options in [
            "ro",
            "ro,norecovery",
            "rw,norecovery",
            "rw,noload",
            "rw,errors=remount-ro,emergency_ro",
            "rw,shutdown",
            "",
        ] {
            assert!(!is_written(options), "{options}");
        }
    }
}
