//! File systems and swap space on a LUN.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use volmap::sys::DeviceNumber;

use super::family::{Family, Relative};
use super::finding::{Finding, FindingKind, Severity};
use super::system::System;

/// What is mounted or swapped to, in any mount namespace that can be seen.
pub(super) fn find(system: &System, family: &Family<'_>) -> Vec<Finding> {
    let tables = mount_tables(system);
    let swaps = fs::read_to_string(system.path("proc/swaps")).unwrap_or_default();
    let mut findings = Vec::new();
    for member in &family.members {
        let mut points: Vec<&str> = tables
            .iter()
            .flat_map(|table| table.lines())
            .filter_map(|line| mount_of(line, member.device))
            .collect();
        points.sort_unstable();
        points.dedup();
        let node = &member.node;
        let danger = |kind, message, mend| Finding {
            severity: Severity::Danger,
            kind,
            device: node.clone(),
            message,
            mend,
        };
        if !points.is_empty() {
            findings.push(danger(
                FindingKind::Mounted,
                format!("{node} is mounted on {}", points.join(", ")),
                format!(
                    "unmount it (umount {}), and see that nothing mounts it again: /etc/fstab, automounters, udisks",
                    points[0]
                ),
            ));
        } else if let Some(name) = btrfs_of(system, member) {
            findings.push(danger(
                FindingKind::Mounted,
                format!("{node} is a device of the mounted btrfs {name}"),
                "unmount that file system, and see that nothing mounts it again".to_owned(),
            ));
        }
        if swaps.lines().skip(1).any(|line| is_swap(line, member)) {
            findings.push(danger(
                FindingKind::Swap,
                format!("this machine swaps to {node}"),
                format!("swapoff {node}, and take it out of /etc/fstab"),
            ));
        }
    }
    findings
}

/// The tables of mounts of this process, and of one process of each other mount namespace.
fn mount_tables(system: &System) -> Vec<String> {
    let mut tables = Vec::new();
    let mut seen = BTreeSet::new();
    let mut look = |process: &str| {
        let directory = system.path("proc").join(process);
        if fs::read_link(directory.join("ns/mnt")).is_ok_and(|namespace| !seen.insert(namespace)) {
            return;
        }
        tables.extend(fs::read_to_string(directory.join("mountinfo")));
    };
    look("self");
    for entry in fs::read_dir(system.path("proc")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(name) = name
            .to_str()
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        {
            look(name);
        }
    }
    tables
}

/// Where a line of `mountinfo` says that a device is mounted (proc(5)).
fn mount_of(line: &str, device: DeviceNumber) -> Option<&str> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (number, point) = (mount.next()?, mount.nth(1)?);
    let source = file_system.split(' ').nth(1)?;
    // Btrfs, for one, has numbers of its own: there the source names the device.
    let is_source = || {
        source.starts_with("/dev/")
            && fs::metadata(source).is_ok_and(|metadata| {
                metadata.rdev() != 0 && DeviceNumber::from_stat(metadata.rdev()) == device
            })
    };
    (DeviceNumber::parse(number) == Some(device) || is_source()).then_some(point)
}

fn btrfs_of(system: &System, member: &Relative) -> Option<String> {
    let name = system.name(member.device);
    let entries = fs::read_dir(system.path("sys/fs/btrfs")).ok()?;
    let mounted = |entry: &fs::DirEntry| entry.path().join("devices").join(&name).exists();
    let found = entries.flatten().find(mounted)?;
    Some(found.file_name().to_string_lossy().into_owned())
}

fn is_swap(line: &str, member: &Relative) -> bool {
    let Some(file) = line.split_whitespace().next() else {
        return false;
    };
    fs::metadata(file).is_ok_and(|metadata| {
        metadata.rdev() != 0 && DeviceNumber::from_stat(metadata.rdev()) == member.device
    }) || file == member.node
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::system::tests::{Tree, number};
    use super::*;
    use crate::file_id::FileId;

    #[test]
    fn mounts_and_swap_of_partitions_are_found() {
        let tree = Tree::new();
        tree.device("8:0", "sda", &[]);
        tree.device("8:1", "sda/sda1", &[]);
        tree.device("8:2", "sda/sda2", &[]);
        tree.write(
            "proc/self/mountinfo",
            "30 22 8:1 / /mnt/a rw shared:1 - ext4 /dev/no rw\n31 22 8:1 / /mnt/b rw - ext4 /dev/no rw\n\
             32 22 8:16 / /mnt/c rw - ext4 /dev/no rw\nnonsense\n",
        );
        tree.write(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n",
        );
        let system = tree.system();
        let family = Family::around(&system, Path::new("/x"), FileId::Device(0), Some(number("8:0")));
        let found = find(&system, &family);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            (found[0].kind, found[0].message.as_str()),
            (FindingKind::Mounted, "/dev/sda1 is mounted on /mnt/a, /mnt/b")
        );
        assert_eq!(found[1].kind, FindingKind::Swap);
        let other = Family::around(&system, Path::new("/x"), FileId::Device(0), Some(number("8:2")));
        assert_eq!(find(&system, &other).len(), 1);
    }
}
