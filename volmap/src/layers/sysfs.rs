//! What sysfs says of block devices.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use uuid::Uuid;

use crate::sys::DeviceNumber;

/// Sysfs counts in these, whatever the block size of the device.
pub(super) const SECTOR: u64 = 512;

/// Bytes of the longest attribute: a page, and sysfs gives it in one read (Documentation/filesystems/sysfs.rst).
const ATTRIBUTE_MAX: usize = 4096;

/// The sysfs tree under some root.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The tree under `root`, `/sys` on a live system.
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn directory(&self, device: DeviceNumber) -> PathBuf {
        self.root.join("dev/block").join(device.to_string())
    }

    /// An attribute without the white space around it; `None` where the device has none of that name, or an empty one.
    ///
    /// # Errors
    /// Of reading, other than that it is not there.
    pub(super) fn attribute(&self, device: DeviceNumber, name: &str) -> io::Result<Option<String>> {
        value(fs::read(self.directory(device).join(name)))
    }

    /// An attribute that is read again and again; `None`: the device has none of that name.
    ///
    /// # Errors
    /// Of opening it.
    pub(super) fn open_attribute(
        &self,
        device: DeviceNumber,
        name: &str,
    ) -> io::Result<Option<OpenAttribute>> {
        match File::open(self.directory(device).join(name)) {
            Ok(file) => Ok(Some(OpenAttribute(file))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// An attribute that is a number and has to be there.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData`: not a number.
    pub(super) fn number(&self, device: DeviceNumber, name: &str) -> io::Result<u64> {
        let text = self.attribute(device, name)?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("sysfs has no {name} for the block device {device}"),
            )
        })?;
        text.parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Size of a device in bytes.
    ///
    /// # Errors
    /// As [`Sysfs::number`].
    pub(super) fn size(&self, device: DeviceNumber) -> io::Result<u64> {
        let sectors = self.number(device, "size")?;
        sectors
            .checked_mul(SECTOR)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The logical block size of a device in bytes; `None`: the kernel does not say.
    ///
    /// # Errors
    /// Of reading; `InvalidData`: not a number.
    pub(super) fn logical_block_size(&self, device: DeviceNumber) -> io::Result<Option<u32>> {
        let said = |device| self.attribute(device, "queue/logical_block_size");
        let text = match said(device)? {
            // A partition has no queue but that of its disk.
            None => self.disk_of_partition(device).ok().map_or(Ok(None), said)?,
            text => text,
        };
        let number = text.map(|text| text.parse());
        number.transpose().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Whether a device has something of that name, which tells what it is.
    pub(super) fn has(&self, device: DeviceNumber, name: &str) -> bool {
        self.directory(device).join(name).exists()
    }

    /// Every block device that is no partition.
    ///
    /// # Errors
    /// Sysfs cannot be read.
    pub(super) fn disks(&self) -> io::Result<Vec<DeviceNumber>> {
        let mut disks = Vec::new();
        for entry in fs::read_dir(self.root.join("dev/block"))? {
            let number = entry?.file_name().to_str().and_then(DeviceNumber::parse);
            disks.extend(number.filter(|&device| !self.has(device, "partition")));
        }
        Ok(disks)
    }

    /// The disk that a partition lies on.
    ///
    /// # Errors
    /// The device is no partition, or sysfs cannot be read.
    pub(super) fn disk_of_partition(&self, partition: DeviceNumber) -> io::Result<DeviceNumber> {
        let directory = fs::canonicalize(self.directory(partition))?;
        let above = directory.parent().ok_or(io::ErrorKind::NotFound)?;
        DeviceNumber::parse(&fs::read_to_string(above.join("dev"))?)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether the kernel says of a device that it rotates: of a mapped one, if something below does. Where it does not say, it is not
    /// known to.
    pub(super) fn rotates(&self, device: DeviceNumber) -> bool {
        let said = |device| self.attribute(device, "queue/rotational").ok().flatten();
        // A partition has no queue but that of its disk.
        let of_disk = || said(self.disk_of_partition(device).ok()?);
        said(device).or_else(of_disk).is_some_and(|said| said == "1")
    }

    /// What a btrfs is busy with that nothing else may be done beside: `none`, `balance`, `device replace`.
    ///
    /// # Errors
    /// A kernel before 5.10; or there is no such file system.
    pub(super) fn exclusive_operation(&self, file_system: Uuid) -> io::Result<String> {
        let text = fs::read_to_string(self.btrfs(file_system).join("exclusive_operation"))?;
        Ok(text.trim().to_owned())
    }

    /// The devices of a btrfs that is mounted.
    ///
    /// # Errors
    /// There is no such file system.
    pub(super) fn btrfs_devices(&self, file_system: Uuid) -> io::Result<Vec<DeviceNumber>> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(self.btrfs(file_system).join("devices"))? {
            let number = fs::read_to_string(entry?.path().join("dev"))?;
            devices.extend(DeviceNumber::parse(&number));
        }
        Ok(devices)
    }

    fn btrfs(&self, file_system: Uuid) -> PathBuf {
        self.root.join("fs/btrfs").join(file_system.to_string())
    }

    /// The kernel's name of a device, `sda1`; its number where sysfs has no name.
    pub(super) fn name(&self, device: DeviceNumber) -> String {
        let uevent = self
            .attribute(device, "uevent")
            .ok()
            .flatten()
            .unwrap_or_default();
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.map_or_else(|| device.to_string(), str::to_owned)
    }

    /// Where the device node is expected. For a device that is opened, compare its number.
    pub(super) fn node(&self, device: DeviceNumber) -> PathBuf {
        PathBuf::from("/dev").join(self.name(device))
    }
}

/// An attribute of one device for as long as that is there: when it goes every read fails, also if another gets its number.
#[derive(Debug)]
pub(super) struct OpenAttribute(File);

impl OpenAttribute {
    /// As [`Sysfs::attribute`].
    ///
    /// # Errors
    /// As [`Sysfs::attribute`].
    pub(super) fn value(&self) -> io::Result<Option<String>> {
        let mut bytes = [0; ATTRIBUTE_MAX];
        value(self.0.read_at(&mut bytes, 0).map(|read| &bytes[..read]))
    }
}

/// The value without the white space around it; `None`: there is none.
fn value(read: io::Result<impl AsRef<[u8]>>) -> io::Result<Option<String>> {
    match read {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(bytes.as_ref());
            let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
            Ok((!text.is_empty()).then(|| text.to_owned()))
        }
        // ENXIO and EINVAL: an attribute of a driver that has nothing to say for this device.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
            ) || error.raw_os_error() == Some(nix::libc::ENXIO) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_partition_rotates_with_its_disk_and_what_is_not_said_is_not_known() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("dev/block")).unwrap();
        for (disk, number, rotational) in [("sda", "8:0", "1\n"), ("sdb", "8:16", "0\n"), ("sdc", "8:32", "")]
        {
            let partition = format!("devices/{disk}/{disk}1");
            fs::create_dir_all(path(&partition)).unwrap();
            fs::create_dir_all(path(&format!("devices/{disk}/queue"))).unwrap();
            fs::write(path(&format!("devices/{disk}/queue/rotational")), rotational).unwrap();
            fs::write(path(&format!("devices/{disk}/dev")), number).unwrap();
            symlink(
                path(&format!("devices/{disk}")),
                path(&format!("dev/block/{number}")),
            )
            .unwrap();
            let first = DeviceNumber::parse(number).unwrap();
            let minor = first.minor + 1;
            symlink(path(&partition), path(&format!("dev/block/8:{minor}"))).unwrap();
        }
        let sysfs = Sysfs::at(root.path());
        let rotates = |minor| sysfs.rotates(DeviceNumber { major: 8, minor });
        assert!(rotates(0) && rotates(1));
        assert!(!rotates(16) && !rotates(17));
        assert!(!rotates(32) && !rotates(33) && !rotates(48));
    }
}
