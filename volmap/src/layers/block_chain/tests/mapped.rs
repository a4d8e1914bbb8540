//! Device-mapper devices.

use std::sync::atomic::Ordering;

use super::world::{World, disk_offset};

const A: &str = "naa:5000c5000000000a";
const B: &str = "naa:5000c5000000000b";

#[test]
fn linear_targets_are_followed_through_partitions() {
    let world = World::new();
    world.table(
        "253:0",
        &[
            (0, 1024, "linear", "8:0 8192"),
            (1024, 2048, "linear", "8:1 2048"),
        ],
    );
    let (graph, top, witness) = world.resolve("253:0");
    assert_eq!(graph.store(top).identity.as_str(), "dm:LVM-abc");
    assert_eq!(
        disk_offset(&graph, top, 0),
        Some((A.into(), 8192 * 512, 1024 * 512))
    );
    assert_eq!(
        disk_offset(&graph, top, 1024 * 512),
        Some((A.into(), 4096 * 512, 2048 * 512))
    );
    witness.check().unwrap();
    world.table(
        "253:0",
        &[
            (0, 1024, "linear", "8:0 8200"),
            (1024, 2048, "linear", "8:1 2048"),
        ],
    );
    assert!(witness.check().is_err());
}

#[test]
fn stripes_lie_on_their_disks_in_turn() {
    let world = World::new();
    world.table(
        "253:0",
        &[
            (0, 1024, "linear", "8:0 8192"),
            (1024, 2048, "striped", "2 128 8:0 16384 8:16 2048"),
        ],
    );
    let (graph, top, witness) = world.resolve("253:0");
    let sector = |sector: u64| disk_offset(&graph, top, sector * 512);
    assert_eq!(sector(1000), Some((A.into(), 9192 * 512, 24 * 512)));
    assert_eq!(sector(1024), Some((A.into(), 16384 * 512, 128 * 512)));
    assert_eq!(sector(1024 + 128), Some((B.into(), 2048 * 512, 128 * 512)));
    assert_eq!(
        sector(1024 + 256 + 5),
        Some((A.into(), (16384 + 133) * 512, 123 * 512))
    );
    assert_eq!(sector(3071), Some((B.into(), (2048 + 1023) * 512, 512)));
    witness.check().unwrap();
    world.table(
        "253:0",
        &[
            (0, 1024, "linear", "8:0 8192"),
            (1024, 2048, "striped", "2 128 8:0 16384 8:16 4096"),
        ],
    );
    assert!(witness.check().is_err());
}

#[test]
fn a_table_that_came_back_is_noticed_by_the_event_counter() {
    let world = World::new();
    world.table("253:0", &[(0, 3072, "linear", "8:0 8192")]);
    let (.., witness) = world.resolve("253:0");
    witness.check().unwrap();
    let mapper = world.mapper.as_ref().unwrap();
    mapper.events.store(true, Ordering::Relaxed);
    assert!(witness.check().is_err());
}

#[test]
fn a_mirror_is_read_from_a_leg_while_all_are_in_sync() {
    let world = World::new();
    world.table("253:0", &[(0, 3072, "mirror", "core 1 1024 2 8:32 0 8:16 64")]);
    world.status("253:0", "2 8:32 8:16 3/3 1 AA 1 core");
    let (graph, top, witness) = world.resolve("253:0");
    // The first leg has no identity.
    assert_eq!(
        disk_offset(&graph, top, 512),
        Some((B.into(), 65 * 512, 3071 * 512))
    );
    witness.check().unwrap();
    world.status("253:0", "2 8:32 8:16 3/3 1 AD 1 core");
    assert!(witness.check().unwrap_err().contains("leg failed"));

    assert!(world.reason("253:0").contains("not all of its legs are alive"));
    world.status("253:0", "2 8:32 8:16 2/3 1 AA 1 core");
    assert!(world.reason("253:0").contains("in sync"));
    world.table(
        "253:0",
        &[(0, 3072, "raid", "raid1 3 0 region_size 1024 2 - 8:0 - 8:16")],
    );
    world.status("253:0", "raid1 2 AA 3072/3072 idle 0 0 -");
    let (graph, top, _) = world.resolve("253:0");
    assert_eq!(disk_offset(&graph, top, 512), Some((A.into(), 512, 3071 * 512)));
}

#[test]
fn multipath_ends_on_the_disk_that_all_paths_lead_to() {
    const PATHS: &str = "0 1 alua 2 1 service-time 0 1 2 8:0 1 1 service-time 0 1 2 8:16 1 1";
    let world = World::new();
    world.scsi("8:16", 0xa);
    world.uuid("253:1", "mpath-35000c5000000000a");
    world.table("253:1", &[(0, 2_097_152, "multipath", PATHS)]);
    world.table("253:0", &[(0, 3072, "linear", "253:1 2048")]);
    let (graph, top, witness) = world.resolve("253:0");
    assert_eq!(
        disk_offset(&graph, top, 0),
        Some((A.into(), 2048 * 512, 3072 * 512))
    );
    let labels: Vec<&str> = graph.stores().iter().map(|store| store.label.as_str()).collect();
    assert_eq!(
        labels,
        ["/dev/dm-1", "/dev/dm-1", "/dev/dm-0"],
        "no path among them"
    );
    witness.check().unwrap();

    world.answer("8:16", 0xb);
    world.set("8:16", "device/wwid", "naa.5000c5000000000b");
    assert!(witness.check().is_err());
    assert!(world.reason("253:0").contains("different disks"));
    world.scsi("8:0", 0xb);
    assert!(
        world
            .reason("253:0")
            .contains("set up for mpath-35000c5000000000a")
    );
    world.uuid("253:1", "mpath-35000c5000000000b");
    world.resolve("253:0").2.check().unwrap();
    world.set("253:1", "size", "2097144");
    assert!(world.reason("253:0").contains("not all of it"));
    world.table("253:1", &[(0, 2_097_144, "multipath", PATHS)]);
    assert!(world.reason("253:0").contains("another size"));
    world.set("253:1", "size", "2097152");
    world.table(
        "253:1",
        &[(0, 2_097_152, "multipath", "0 0 1 1 service-time 0 1 2 8:32 1 1")],
    );
    assert!(world.reason("253:0").contains("no identity"));
}

#[test]
fn what_is_not_understood_is_opaque() {
    let mut world = World::new();
    let cases = [
        ("crypt", "aes-xts-plain64 - 0 8:0 4096", "ciphertext"),
        ("snapshot-origin", "8:0", "live"),
        ("linear", "8:1 2048", "past the end of /dev/sda1"),
        ("striped", "2 128 8:0 0 8:1 2568", "past the end of /dev/sda1"),
        ("striped", "2 1000 8:0 0 8:16 0", "whole rows"),
        ("linear", "253:0 0", "deeper than"),
    ];
    for (kind, parameters, expected) in cases {
        world.table("253:0", &[(0, 3072, kind, parameters)]);
        let reason = world.reason("253:0");
        assert!(reason.contains(expected), "{kind} {parameters}: {reason}");
    }
    world.mapper = None;
    assert!(world.reason("253:0").contains("cannot be read"));
}
