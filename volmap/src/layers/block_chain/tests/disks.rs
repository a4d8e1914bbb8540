//! Who a disk is.

use super::world::{World, disk_offset};

#[test]
fn a_disk_without_identity_is_opaque_and_says_what_to_do() {
    let reason = World::new().reason("8:32");
    assert!(reason.contains("--identity /dev/sdc=NAME"), "{reason}");
}

#[test]
fn a_virtual_disk_is_its_serial_number_and_an_nvme_namespace_its_own_number() {
    let world = World::new();
    let identity = || {
        let (graph, top, _) = world.resolve("8:32");
        disk_offset(&graph, top, 0).map(|(identity, ..)| identity)
    };
    world.set("8:32", "serial", "VBLK1");
    assert_eq!(identity().as_deref(), Some("serial:VBLK1"));
    world.set("8:32", "nsid", "1");
    world.set("8:32", "wwid", "eui.0025385b71b0a1c3");
    assert_eq!(identity().as_deref(), Some("eui:0025385b71b0a1c3"));
    // What the kernel made up because the device has no number.
    world.set("8:32", "wwid", "nvme.1af4-73657269616c-51454d55-00000001");
    assert_eq!(identity(), None);
    assert!(world.reason("8:32").contains("without NGUID"));
}

#[test]
fn a_scsi_disk_is_asked_and_not_looked_up() {
    let world = World::new();
    world.set("8:0", "device/wwid", "t10.ATA     whatever");
    let (graph, top, _) = world.resolve("8:0");
    assert_eq!(
        disk_offset(&graph, top, 0),
        Some(("naa:5000c5000000000a".into(), 0, 1 << 30))
    );
    world.silence("8:0");
    assert!(world.reason("8:0").contains("does not answer"));
}

#[test]
fn a_lun_that_was_changed_under_its_device_is_opaque() {
    let world = World::new();
    world.answer("8:0", 0xc);
    let reason = world.reason("8:0");
    assert!(reason.contains("rescan"), "{reason}");
}

#[test]
fn two_disks_with_one_identity_and_two_sizes_are_both_opaque() {
    let world = World::new();
    world.scsi("8:16", 0xa);
    // They may be two paths to one disk.
    let (graph, top, _) = world.resolve("8:0");
    assert!(disk_offset(&graph, top, 0).is_some());
    world.set("8:16", "size", "2097160");
    for device in ["8:0", "8:16"] {
        let reason = world.reason(device);
        assert!(reason.contains("two disks under one name"), "{reason}");
    }
    world.set("8:16", "size", "2097152");
    world.set("8:0", "queue/logical_block_size", "512");
    world.set("8:16", "queue/logical_block_size", "4096");
    assert!(world.reason("8:0").contains("two disks under one name"));
}

#[test]
fn of_two_disks_with_one_identity_only_the_first_is_followed() {
    let world = World::new();
    world.scsi("8:16", 0xa);
    world.table(
        "253:0",
        &[
            (0, 1024, "linear", "8:0 8192"),
            (1024, 1024, "linear", "8:16 2048"),
            (2048, 1024, "linear", "8:1 0"),
        ],
    );
    let (graph, top, _) = world.resolve("253:0");
    assert!(disk_offset(&graph, top, 0).is_some());
    assert_eq!(disk_offset(&graph, top, 1024 * 512), None);
    assert!(disk_offset(&graph, top, 2048 * 512).is_some());
}
