//! What sysfs says of block devices.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::sys::DeviceNumber;

/// Sysfs counts in these, whatever the block size of the device.
pub(super) const SECTOR: u64 = 512;

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
        match fs::read(self.directory(device).join(name)) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
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

    /// Whether a device has a directory of that name, which tells what drives it.
    pub(super) fn has(&self, device: DeviceNumber, name: &str) -> bool {
        self.directory(device).join(name).exists()
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
