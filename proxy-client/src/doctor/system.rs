//! What procfs and sysfs say of block devices. Both stand under a root that a test can replace.

use std::fs;
use std::path::{Path, PathBuf};

use volmap::sys::DeviceNumber;

/// The two trees.
#[derive(Clone, Debug)]
pub(super) struct System {
    root: PathBuf,
}

impl System {
    /// Those of the machine.
    pub(super) fn live() -> Self {
        Self { root: "/".into() }
    }

    #[cfg(test)]
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// A path below the root: `proc/swaps`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory of a device.
    pub(super) fn directory(&self, device: DeviceNumber) -> Option<PathBuf> {
        fs::canonicalize(self.path("sys/dev/block").join(device.to_string())).ok()
    }

    /// The kernel's name of a device, `sdb1`; its number where it has none.
    pub(super) fn name(&self, device: DeviceNumber) -> String {
        let directory = self.directory(device);
        let name = directory.as_deref().and_then(Path::file_name);
        name.map_or_else(|| device.to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Its node.
    pub(super) fn node(&self, device: DeviceNumber) -> String {
        // What device-mapper calls it is what people know it by.
        match self.attribute(device, "dm/name") {
            Some(name) => format!("/dev/mapper/{name}"),
            // The kernel writes a slash of the name as an exclamation mark.
            None => format!("/dev/{}", self.name(device).replace('!', "/")),
        }
    }

    /// An attribute; `None` where there is none, or an empty one.
    pub(super) fn attribute(&self, device: DeviceNumber, name: &str) -> Option<String> {
        let text = fs::read(self.directory(device)?.join(name)).ok()?;
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Whether a device has something of that name, which tells what it is.
    pub(super) fn has(&self, device: DeviceNumber, name: &str) -> bool {
        self.directory(device)
            .is_some_and(|directory| directory.join(name).exists())
    }

    /// What was built on a device.
    pub(super) fn holders(&self, device: DeviceNumber) -> Vec<DeviceNumber> {
        self.listed(device, "holders")
    }

    /// What a device was built on.
    pub(super) fn slaves(&self, device: DeviceNumber) -> Vec<DeviceNumber> {
        self.listed(device, "slaves")
    }

    fn listed(&self, device: DeviceNumber, name: &str) -> Vec<DeviceNumber> {
        let Some(directory) = self.directory(device) else {
            return Vec::new();
        };
        let entries = fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        sorted(entries.filter_map(|entry| number_in(&entry.path())))
    }

    /// The partitions of a disk.
    pub(super) fn partitions(&self, device: DeviceNumber) -> Vec<DeviceNumber> {
        let Some(directory) = self.directory(device) else {
            return Vec::new();
        };
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let partitions = entries.filter(|entry| entry.path().join("partition").exists());
        sorted(partitions.filter_map(|entry| number_in(&entry.path())))
    }

    /// The disk of a partition.
    pub(super) fn disk_of(&self, partition: DeviceNumber) -> Option<DeviceNumber> {
        let directory = self.directory(partition)?;
        directory
            .join("partition")
            .exists()
            .then(|| number_in(directory.parent()?))?
    }

    /// Every device that is no partition.
    pub(super) fn disks(&self) -> Vec<DeviceNumber> {
        let entries = fs::read_dir(self.path("sys/block"))
            .into_iter()
            .flatten()
            .flatten();
        sorted(entries.filter_map(|entry| number_in(&entry.path())))
    }

    /// Whether a device is a map of device-mapper over the paths to one disk.
    pub(super) fn is_multipath(&self, device: DeviceNumber) -> bool {
        self.attribute(device, "dm/uuid")
            .is_some_and(|uuid| uuid.starts_with("mpath-"))
    }
}

fn number_in(directory: &Path) -> Option<DeviceNumber> {
    DeviceNumber::parse(&fs::read_to_string(directory.join("dev")).ok()?)
}

fn sorted(devices: impl Iterator<Item = DeviceNumber>) -> Vec<DeviceNumber> {
    let mut devices: Vec<_> = devices.collect();
    devices.sort_unstable();
    devices
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree of devices, as sysfs has it.
    pub(in super::super) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(in super::super) fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for name in ["sys/dev/block", "sys/block", "sys/devices", "proc/self"] {
                fs::create_dir_all(tree.path(name)).unwrap();
            }
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// A disk, or with `parent/name` a partition.
        pub(in super::super) fn device(&self, number: &str, name: &str, attributes: &[(&str, &str)]) {
            let directory = self.path("sys/devices").join(name);
            fs::create_dir_all(directory.join("holders")).unwrap();
            fs::create_dir_all(directory.join("slaves")).unwrap();
            for (attribute, value) in [("dev", number)].iter().chain(attributes) {
                let file = directory.join(attribute);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, format!("{value}\n")).unwrap();
            }
            symlink(&directory, self.path("sys/dev/block").join(number)).unwrap();
            if name.contains('/') {
                fs::write(directory.join("partition"), "1\n").unwrap();
            } else {
                symlink(&directory, self.path("sys/block").join(name)).unwrap();
            }
        }

        /// One device is built on another.
        pub(in super::super) fn holds(&self, holder: &str, slave: &str) {
            let name = |device: &str| device.rsplit('/').next().unwrap().to_owned();
            let place = |device: &str| self.path("sys/devices").join(device);
            symlink(place(holder), place(slave).join("holders").join(name(holder))).unwrap();
            symlink(place(slave), place(holder).join("slaves").join(name(slave))).unwrap();
        }

        pub(in super::super) fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        pub(in super::super) fn system(&self) -> System {
            System::at(self.0.path())
        }
    }

    pub(in super::super) fn number(text: &str) -> DeviceNumber {
        DeviceNumber::parse(text).unwrap()
    }

    #[test]
    fn relations_are_found() {
        let tree = Tree::new();
        tree.device("8:0", "sda", &[]);
        tree.device("8:1", "sda/sda1", &[]);
        tree.device("253:0", "dm-0", &[("dm/name", "vg-lv"), ("dm/uuid", "LVM-xyz")]);
        tree.holds("dm-0", "sda/sda1");
        let system = tree.system();
        assert_eq!(system.partitions(number("8:0")), [number("8:1")]);
        assert_eq!(system.disk_of(number("8:1")), Some(number("8:0")));
        assert_eq!(system.disk_of(number("8:0")), None);
        assert_eq!(system.holders(number("8:1")), [number("253:0")]);
        assert_eq!(system.slaves(number("253:0")), [number("8:1")]);
        assert_eq!(system.disks(), [number("8:0"), number("253:0")]);
        assert_eq!(system.node(number("253:0")), "/dev/mapper/vg-lv");
        assert_eq!(system.node(number("8:1")), "/dev/sda1");
        assert_eq!(system.node(number("9:9")), "/dev/9:9");
    }
}
