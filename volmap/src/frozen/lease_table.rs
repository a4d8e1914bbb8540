//! Leases of all processes that can be seen, by `/proc/locks`. For advice and error messages; no witness.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::sys::DeviceNumber;

/// The leases at some moment.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    leases: Vec<Lease>,
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
        Ok(Self::parse(&fs::read_to_string("/proc/locks")?))
    }

    /// Whether somebody holds a lease on a file.
    pub(crate) fn holds(&self, file: &Metadata) -> bool {
        self.of(file).is_some()
    }

    /// Whether somebody holds a write lease on a file: opening it would break that.
    pub(crate) fn holds_for_writing(&self, file: &Metadata) -> bool {
        self.of(file).is_some_and(|lease| lease.for_writing)
    }

    fn of(&self, file: &Metadata) -> Option<&Lease> {
        let device = DeviceNumber::from_stat(file.dev());
        self.leases
            .iter()
            .find(|l| (l.device, l.inode) == (device, file.ino()))
    }

    /// proc(5): `1: LEASE  ACTIVE    READ  1234 fe:00:1234 0 EOF`, the device in hexadecimal.
    fn parse(locks: &str) -> Self {
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
        }
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
            LeaseTable::parse(locks).leases,
            [lease(0x1f, 77, false), lease(0, 79, true)]
        );
    }

    #[test]
    fn a_lease_of_ours_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert!(!LeaseTable::read().unwrap().holds(&metadata));
        crate::sys::lease::take_write(file.as_file()).unwrap();
        assert!(LeaseTable::read().unwrap().holds_for_writing(&metadata));
    }
}
