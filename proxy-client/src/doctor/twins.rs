//! Several devices under one name: paths to one disk, or a disk and its clone.

use volmap::sys::DeviceNumber;

use super::family::Family;
use super::finding::{Finding, FindingKind, Severity};
use super::system::System;

/// Attributes that name a disk: NVMe's, SCSI's, the serial number of virtio-blk.
const NAMES: [&str; 3] = ["wwid", "device/wwid", "serial"];

fn names(system: &System, device: DeviceNumber) -> [Option<String>; 3] {
    // What a driver prints that has no serial number.
    let is_name = |text: &String| text != "(null)";
    NAMES.map(|name| system.attribute(device, name).filter(is_name))
}

/// Other devices that have all the names of this one, whatever their size.
fn namesakes(system: &System, device: DeviceNumber) -> Vec<DeviceNumber> {
    let own = names(system, device);
    if own.iter().all(Option::is_none) {
        return Vec::new();
    }
    let mut others = system.disks();
    others.retain(|other| *other != device && names(system, *other) == own);
    others
}

/// Size and block size: all paths to a disk have the same.
fn geometry(system: &System, device: DeviceNumber) -> [Option<String>; 2] {
    ["size", "queue/logical_block_size"].map(|name| system.attribute(device, name))
}

/// Other paths to the disk of this one, as far as names and sizes tell.
pub(super) fn of(system: &System, device: DeviceNumber) -> Vec<DeviceNumber> {
    let own = geometry(system, device);
    let mut others = namesakes(system, device);
    others.retain(|other| geometry(system, *other) == own);
    others
}

/// What is to be said of them.
pub(super) fn find(system: &System, family: &Family<'_>) -> Vec<Finding> {
    let Some(lun) = family.lun else { return Vec::new() };
    let node = system.node(lun);
    let warning = |kind, message, mend| Finding {
        severity: Severity::Warning,
        kind,
        device: node.clone(),
        message,
        mend,
    };
    let map = system
        .holders(lun)
        .into_iter()
        .find(|holder| system.is_multipath(*holder));
    if let Some(map) = map {
        let map = system.node(map);
        let message = format!("{node} is one path of several to the disk that {map} is");
        return vec![warning(
            FindingKind::OnePath,
            message,
            format!("give {map} as the LUN: where this path fails, it takes another"),
        )];
    }
    let paths = match system.is_multipath(lun) {
        true => system.slaves(lun),
        false => vec![lun],
    };
    let mut strangers = Vec::new();
    for path in &paths {
        strangers.extend(namesakes(system, *path));
    }
    strangers.sort_unstable();
    strangers.dedup();
    strangers.retain(|other| !paths.contains(other));
    if strangers.is_empty() {
        return Vec::new();
    }
    let own = geometry(system, lun);
    let listed: Vec<String> = strangers.iter().map(|other| system.node(*other)).collect();
    let listed = listed.join(", ");
    let alike = strangers.iter().all(|other| geometry(system, *other) == own);
    let message = if alike {
        format!("{listed} and {node} have one WWID, and no multipath map joins them")
    } else {
        format!(
            "{listed} and {node} have one WWID and differ in size or block size: two disks under one name"
        )
    };
    let mend = if alike {
        "where they are paths to one disk, let multipathd join them and give the map as the LUN; where one is a clone, give \
         it a name of its own on the array"
            .to_owned()
    } else {
        "give one of them a name of its own on the array, or rescan the one that was resized".to_owned()
    };
    vec![warning(FindingKind::Twin, message, mend)]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::system::tests::{Tree, number};
    use super::*;
    use crate::file_id::FileId;

    fn kinds(tree: &Tree, lun: &str) -> Vec<FindingKind> {
        let system = tree.system();
        let family = Family::around(
            &system,
            Path::new("/dev/lun"),
            FileId::Device(0),
            Some(number(lun)),
        );
        find(&system, &family)
            .into_iter()
            .map(|finding| finding.kind)
            .collect()
    }

    #[test]
    fn paths_maps_and_clones_are_told_apart() {
        let tree = Tree::new();
        let disk = |wwid, size| [("device/wwid", wwid), ("size", size)];
        for (number, name, wwid, size) in [
            ("8:0", "sda", "naa.1", "100"),
            ("8:16", "sdb", "naa.1", "100"),
            ("8:32", "sdc", "naa.2", "100"),
            ("8:48", "sdd", "naa.3", "100"),
            ("8:64", "sde", "naa.3", "200"),
        ] {
            tree.device(number, name, &disk(wwid, size));
        }
        assert_eq!(kinds(&tree, "8:0"), [FindingKind::Twin]);
        assert_eq!(kinds(&tree, "8:32"), []);
        assert_eq!(kinds(&tree, "8:48"), [FindingKind::Twin]);
        assert_eq!(of(&tree.system(), number("8:0")), [number("8:16")]);
        assert_eq!(of(&tree.system(), number("8:48")), []);
        let blocks = |size| {
            [
                ("device/wwid", "naa.4"),
                ("size", "100"),
                ("queue/logical_block_size", size),
            ]
        };
        tree.device("8:80", "sdf", &blocks("512"));
        tree.device("8:96", "sdg", &blocks("4096"));
        assert_eq!(kinds(&tree, "8:80"), [FindingKind::Twin]);
        assert_eq!(of(&tree.system(), number("8:80")), []);

        let map = [("dm/name", "mpatha"), ("dm/uuid", "mpath-1"), ("size", "100")];
        tree.device("253:0", "dm-0", &map);
        tree.holds("dm-0", "sda");
        assert_eq!(kinds(&tree, "8:0"), [FindingKind::OnePath]);
        // A path that the map lacks.
        assert_eq!(kinds(&tree, "253:0"), [FindingKind::Twin]);
        tree.holds("dm-0", "sdb");
        assert_eq!(kinds(&tree, "253:0"), []);
    }
}
