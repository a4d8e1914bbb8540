//! Leases of all processes that can be seen, by `/proc/locks`. For advice and error messages; no witness.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::sys::DeviceNumber;

/// The leases at some moment.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    leases: Vec<Lease>,
    mounts: Vec<Mount>,
}

/// A mounted file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mount {
    id: u64,
    device: DeviceNumber,
    is_btrfs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    device: DeviceNumber,
    inode: u64,
    for_writing: bool,
}

impl LeaseTable {
    /// The leases of now.
    ///
    /// # Errors
    /// procfs cannot be read.
    pub(crate) fn read() -> io::Result<Self> {
        let (locks, mounts) = (
            fs::read_to_string("/proc/locks")?,
            fs::read_to_string("/proc/self/mountinfo")?,
        );
        Ok(Self::parse(&locks, &mounts))
    }

    /// Whether somebody holds a lease on a file; of a file on btrfs, rather one lease too many.
    pub(crate) fn holds(&self, file: &Metadata) -> bool {
        let device = DeviceNumber::from_stat(file.dev());
        let known = self.mounts.iter().any(|mount| mount.device == device);
        // `stat` has a number of its own for each subvolume of a btrfs, `/proc/locks` that of the mount.
        let btrfs = |lease: DeviceNumber| {
            let mut mounts = self.mounts.iter();
            !known && mounts.any(|mount| mount.is_btrfs && mount.device == lease)
        };
        let inode = file.ino();
        self.leases
            .iter()
            .any(|lease| lease.inode == inode && (lease.device == device || btrfs(lease.device)))
    }

    /// Whether somebody holds a write lease on the file at `path`: opening it would break that.
    pub(crate) fn holds_for_writing(&self, path: &Path) -> bool {
        // Looked at without opening it.
        let Ok(file) = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
        else {
            return false;
        };
        let Ok(metadata) = file.metadata() else {
            return false;
        };
        let device = self
            .device_of_mount(&file)
            .unwrap_or_else(|| DeviceNumber::from_stat(metadata.dev()));
        self.leases
            .iter()
            .any(|lease| lease.for_writing && (lease.device, lease.inode) == (device, metadata.ino()))
    }

    /// The device of the mount that a file is in.
    fn device_of_mount(&self, file: &File) -> Option<DeviceNumber> {
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
        let id = told.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        let id: u64 = id.trim().parse().ok()?;
        let mount = self.mounts.iter().find(|mount| mount.id == id)?;
        Some(mount.device)
    }

    /// proc(5): `1: LEASE  ACTIVE    READ  1234 fe:00:1234 0 EOF`, the device in hexadecimal.
    fn parse(locks: &str, mounts: &str) -> Self {
        let parse = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "LEASE", _, kind, _, place, ..] = words[..] else {
                return None;
            };
            let mut place = place.splitn(3, ':');
            Some(Lease {
                device: DeviceNumber {
                    major: u32::from_str_radix(place.next()?, 16).ok()?,
                    minor: u32::from_str_radix(place.next()?, 16).ok()?,
                },
                inode: place.next()?.parse().ok()?,
                for_writing: kind == "WRITE",
            })
        };
        Self {
            leases: locks.lines().filter_map(parse).collect(),
            mounts: mounts.lines().filter_map(Mount::parse).collect(),
        }
    }
}

impl Mount {
    /// proc(5): `36 35 98:0 /root /mount rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (_, file_system) = line.split_once(" - ")?;
        Some(Self {
            id: words.next()?.parse().ok()?,
            device: DeviceNumber::parse(words.nth(1)?)?,
            is_btrfs: file_system.starts_with("btrfs "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leases_count() {
        let locks = "1: POSIX  ADVISORY  WRITE 9 fe:00:5 0 EOF\n2: LEASE  ACTIVE    READ  9 fe:1f:77 0 EOF\n\
                     2: -> LEASE  BREAKING  READ  9 fe:1f:78 0 EOF\n3: LEASE  ACTIVE    WRITE 9 fe:00:79 0 EOF\n";
        let lease = |minor, inode, for_writing| Lease {
            device: DeviceNumber { major: 0xfe, minor },
            inode,
            for_writing,
        };
        assert_eq!(
            LeaseTable::parse(locks, "").leases,
            [lease(0x1f, 77, false), lease(0, 79, true)]
        );
    }

    #[test]
    fn a_mount_has_a_number_and_a_device() {
        let table = LeaseTable::parse(
            "",
            "30 1 0:42 / /pool rw shared:1 - btrfs /dev/sda rw\n31 1 8:1 / /tmp rw - ext4 /dev/sda1 rw\n",
        );
        let mount = |id, major, minor, is_btrfs| Mount {
            id,
            device: DeviceNumber { major, minor },
            is_btrfs,
        };
        assert_eq!(table.mounts, [mount(30, 0, 42, true), mount(31, 8, 1, false)]);
    }

    #[test]
    fn a_lease_of_ours_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert!(!LeaseTable::read().unwrap().holds(&metadata));
        crate::sys::lease::take_write(file.as_file()).unwrap();
        let leases = LeaseTable::read().unwrap();
        assert!(leases.holds(&metadata) && leases.holds_for_writing(file.path()));
    }
}
