//! The devices that share bytes with a LUN: its partitions, other paths to it, loop devices, and what was built on any of them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use volmap::sys::DeviceNumber;

use super::finding::{Finding, FindingKind, Severity};
use super::system::System;
use super::twins;
use crate::file_id::FileId;

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Relative {
    pub(super) device: DeviceNumber,
    pub(super) node: String,
    /// What it was built on; `None` for the LUN itself, in any of its shapes.
    below: Option<DeviceNumber>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Family<'a> {
    system: &'a System,
    /// The LUN, where it is a device.
    pub(super) lun: Option<DeviceNumber>,
    /// As the operator wrote it.
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    pub(super) members: Vec<Relative>,
}

impl<'a> Family<'a> {
    /// The family of the LUN at `path`: a device, or a file that stands for one.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn of(system: &'a System, path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let id = FileId::of(&metadata);
        let lun = match id {
            FileId::Device(_) => Some(DeviceNumber::from_stat(metadata.rdev())),
            FileId::Inode { .. } => None,
        };
        Ok(Self::around(system, path, id, lun))
    }

    pub(super) fn around(system: &'a System, path: &Path, id: FileId, lun: Option<DeviceNumber>) -> Self {
        let mut family = Self {
            system,
            lun,
            path: path.to_owned(),
            id,
            members: Vec::new(),
        };
        match lun {
            Some(lun) => {
                family.add(lun, None);
                family.add_other_shapes(lun);
            }
            None => family.add_loops(id, None),
        }
        family.grow();
        family
    }

    /// The same disk under other names: paths of a multipath map, other paths, loop devices on one file.
    fn add_other_shapes(&mut self, lun: DeviceNumber) {
        if self.system.is_multipath(lun) {
            for path in self.system.slaves(lun) {
                self.add(path, None);
            }
        }
        for twin in twins::of(self.system, lun) {
            self.add(twin, None);
        }
        let Some(backing) = self.system.attribute(lun, "loop/backing_file") else {
            return;
        };
        let Ok(metadata) = fs::metadata(backing) else {
            return;
        };
        let id = FileId::of(&metadata);
        self.add_loops(id, None);
        if let FileId::Device(_) = id {
            let below = DeviceNumber::from_stat(metadata.rdev());
            self.add(below, None);
            // A loop device may stand on another; none stands on itself.
            self.add_other_shapes(below);
        }
    }

    fn add(&mut self, device: DeviceNumber, below: Option<DeviceNumber>) {
        if !self.members.iter().any(|member| member.device == device) {
            self.members.push(Relative {
                device,
                node: self.system.node(device),
                below,
            });
        }
    }

    fn add_loops(&mut self, id: FileId, below: Option<DeviceNumber>) {
        for device in self.system.disks() {
            let Some(backing) = self.system.attribute(device, "loop/backing_file") else {
                continue;
            };
            if fs::metadata(backing).is_ok_and(|metadata| FileId::of(&metadata) == id) {
                self.add(device, below);
            }
        }
    }

    /// What stands on what is there already.
    fn grow(&mut self) {
        let mut next = 0;
        while let Some(member) = self.members.get(next) {
            let device = member.device;
            next += 1;
            for part in self.system.partitions(device) {
                self.add(part, Some(device));
            }
            for holder in self.system.holders(device) {
                self.add(holder, Some(device));
            }
            let id = FileId::Device(nix::sys::stat::makedev(device.major.into(), device.minor.into()));
            self.add_loops(id, Some(device));
        }
    }

    /// Whether a multipath map has this device, or the disk that it is a partition of, as one of its paths.
    pub(super) fn is_held_by_map(&self, device: DeviceNumber) -> bool {
        let disk = self.system.disk_of(device).unwrap_or(device);
        let mut holders = self.system.holders(disk).into_iter();
        holders.any(|holder| self.system.is_multipath(holder))
    }

    /// What was built on the LUN, or on a part of it.
    pub(super) fn uses(&self) -> Vec<Finding> {
        self.members
            .iter()
            .filter_map(|member| self.use_of(member))
            .collect()
    }

    fn use_of(&self, member: &Relative) -> Option<Finding> {
        let below = member.below?;
        let system = self.system;
        // Only what holds a device for itself; a loop device, for one, does not.
        if !system.holders(below).contains(&member.device) {
            return None;
        }
        let (node, on) = (&member.node, system.node(below));
        let finding = |kind, message, mend| {
            Some(Finding {
                severity: Severity::Danger,
                kind,
                device: node.clone(),
                message,
                mend,
            })
        };
        if system.has(member.device, "md") {
            let state = system
                .attribute(member.device, "md/array_state")
                .unwrap_or_else(|| "unknown".into());
            return finding(
                FindingKind::Array,
                format!("{on} is a member of the md array {node} (state {state})"),
                format!(
                    "stop it: mdadm --stop {node}; and have none assembled: \"AUTO -all\" in /etc/mdadm/mdadm.conf"
                ),
            );
        }
        let uuid = system.attribute(member.device, "dm/uuid").unwrap_or_default();
        if system.is_multipath(member.device) || is_partition_of_map(&uuid) {
            return None;
        }
        if uuid.starts_with("LVM-") {
            let name = system.attribute(member.device, "dm/name").unwrap_or_default();
            let group = volume_group(&name);
            return finding(
                FindingKind::VolumeGroup,
                format!("{on} is in the volume group {group}, which is active here: {node}"),
                format!(
                    "deactivate it: vgchange --activate n {group}; and keep LVM away from the disk: lvmdevices --deldev \
                     {on}, or in lvm.conf a global_filter that rejects it"
                ),
            );
        }
        if uuid.starts_with("CRYPT-") {
            let name = system.attribute(member.device, "dm/name").unwrap_or_default();
            return finding(
                FindingKind::Held,
                format!("{on} is opened by cryptsetup: {node}"),
                format!("close it: cryptsetup close {name}; and take it out of /etc/crypttab"),
            );
        }
        finding(
            FindingKind::Held,
            format!("{node} is built on {on}"),
            format!("take {node} down: a LUN of another machine is to be read, and for nothing else"),
        )
    }
}

/// kpartx and systemd's rules name partitions of maps so.
fn is_partition_of_map(uuid: &str) -> bool {
    uuid.strip_prefix("part").is_some_and(|rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit())
            .starts_with("-mpath-")
    })
}

/// The volume group in a device-mapper name: a hyphen of a name is doubled there, a single one ends it.
fn volume_group(name: &str) -> String {
    let mut group = String::new();
    let mut rest = name.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '-' && rest.next_if_eq(&'-').is_none() {
            break;
        }
        group.push(c);
    }
    group
}

#[cfg(test)]
mod tests {
    use super::super::system::tests::{Tree, number};
    use super::*;

    fn kinds(tree: &Tree, lun: &str) -> Vec<(FindingKind, String)> {
        let system = tree.system();
        let family = Family::around(
            &system,
            Path::new("/dev/lun"),
            FileId::Device(0),
            Some(number(lun)),
        );
        let uses = family.uses().into_iter();
        uses.map(|finding| (finding.kind, finding.device)).collect()
    }

    #[test]
    fn what_is_built_on_a_partition_of_a_map_is_found_and_the_map_is_not() {
        let tree = Tree::new();
        tree.device("8:0", "sda", &[("size", "2048")]);
        tree.device("8:16", "sdb", &[("size", "2048")]);
        let mapper = |name, uuid| [("dm/name", name), ("dm/uuid", uuid)];
        tree.device("253:0", "dm-0", &mapper("mpatha", "mpath-36000"));
        tree.device("253:1", "dm-1", &mapper("mpatha1", "part1-mpath-36000"));
        tree.device("253:2", "dm-2", &mapper("my--vg-lv", "LVM-abc"));
        tree.device("253:3", "dm-3", &mapper("secret", "CRYPT-LUKS2-x"));
        for (holder, slave) in [
            ("dm-0", "sda"),
            ("dm-0", "sdb"),
            ("dm-1", "dm-0"),
            ("dm-2", "dm-1"),
            ("dm-3", "dm-2"),
        ] {
            tree.holds(holder, slave);
        }
        let expected = [
            (FindingKind::VolumeGroup, "/dev/mapper/my--vg-lv".to_owned()),
            (FindingKind::Held, "/dev/mapper/secret".to_owned()),
        ];
        for lun in ["253:0", "8:0"] {
            assert_eq!(kinds(&tree, lun), expected, "{lun}");
        }
        // A logical volume that is itself given as the LUN is in use by what is on it, and by nothing else.
        assert_eq!(kinds(&tree, "253:2"), expected[1..]);
    }

    #[test]
    fn arrays_are_found_on_partitions() {
        let tree = Tree::new();
        tree.device("8:0", "sda", &[]);
        tree.device("8:1", "sda/sda1", &[]);
        tree.device("9:0", "md0", &[("md/array_state", "inactive")]);
        tree.holds("md0", "sda/sda1");
        assert_eq!(kinds(&tree, "8:0"), [(FindingKind::Array, "/dev/md0".to_owned())]);
    }

    #[test]
    fn hyphens_of_volume_groups_are_doubled() {
        for (name, group) in [
            ("vg-lv", "vg"),
            ("my--vg-my--lv", "my-vg"),
            ("a----b-c", "a--b"),
            ("plain", "plain"),
        ] {
            assert_eq!(volume_group(name), group);
        }
        assert!(is_partition_of_map("part12-mpath-3600") && !is_partition_of_map("LVM-part1-mpath-"));
    }
}
