//! `/proc/self/mountinfo`: which file system a device number stands for.

use std::fs;
use std::io;

use crate::sys::DeviceNumber;

/// A mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub(super) device: DeviceNumber,
    /// Where it is mounted, with the octal escapes of the kernel.
    pub(super) mount_point: String,
    /// Its type: `xfs`, `ext4`, `fuse.sshfs`.
    pub(super) kind: String,
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
        })
    }
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
        assert!(Mount::parse("36 35 98:0 / /mnt rw - xfs /dev/x rw").is_some());
        assert_eq!(Mount::parse("36 35 98:0 / /mnt rw xfs"), None);
    }
}
