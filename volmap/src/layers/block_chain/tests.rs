mod disks;
mod mapped;
mod world;

use std::fs;

use world::World;

#[test]
fn a_partition_lies_at_its_start() {
    let world = World::new();
    let (graph, top, witness) = world.resolve("8:1");
    assert_eq!(
        graph.store(top).identity.as_str(),
        "partition:naa:5000c5000000000a-1"
    );
    assert_eq!(
        world::disk_offset(&graph, top, 512),
        Some(("naa:5000c5000000000a".into(), 2049 * 512, 4095 * 512))
    );
    witness.check().unwrap();
    world.set("8:1", "start", "2056");
    assert!(witness.check().unwrap_err().contains("start"));
    world.set("8:1", "start", "2048");
    assert!(witness.check().is_err(), "a lost mapping stays lost");
}

#[test]
fn another_disk_in_the_place_of_the_first_is_noticed() {
    let world = World::new();
    let (.., witness) = world.resolve("8:1");
    witness.check().unwrap();
    world.set("8:0", "device/wwid", "naa.5000c5000000000f");
    assert!(witness.check().is_err());
}

#[test]
fn arrays_and_caches_are_opaque_by_name() {
    let world = World::new();
    for (directory, word) in [("md", "software RAID"), ("bcache", "bcache")] {
        let path = world.root().join("devices/block/sdc").join(directory);
        fs::create_dir(&path).unwrap();
        assert!(world.reason("8:32").contains(word));
        fs::remove_dir(&path).unwrap();
    }
}
