//! Where a disk begins, and how large its blocks are.

use volmap::freeze::Method;

use crate::rig::{Rig, fragmented_file, path, read_all, run};

/// Mounts a new XFS on `device`, and reads a clone of a fragmented file both ways.
fn clone_and_compare(rig: &Rig, device: &str) {
    run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", device]).unwrap();
    run("mount", &[device, path(&rig.mount)]).unwrap();
    let volume = rig.mount.join("disk.img");
    let frozen = fragmented_file(&volume);
    let image = rig.freeze(&volume, Method::Reflink).unwrap();
    let (bytes, direct) = rig.read_as_proxy(&*image);
    assert!(bytes == frozen && read_all(&*image) == frozen);
    assert!(direct > 3 << 20, "only {direct} bytes were direct");
}

#[test]
fn a_loop_device_with_an_offset_and_large_sectors_is_followed() {
    let Some(mut rig) = Rig::new(
        "a_loop_device_with_an_offset_and_large_sectors_is_followed",
        400,
        &[],
    ) else {
        return;
    };
    let lun = rig.lun.clone();
    let options = ["--direct-io=on", "--offset", "5242880", "--sector-size", "4096"];
    let device = rig.attach(&lun, &options);
    clone_and_compare(&rig, path(&device));
}

#[test]
fn a_partition_at_an_odd_sector_is_followed() {
    let Some(mut rig) = Rig::new("a_partition_at_an_odd_sector_is_followed", 400, &[]) else {
        return;
    };
    let lun = rig.lun.clone();
    let device = rig.attach(&lun, &["--direct-io=on", "--partscan"]);
    run("addpart", &[path(&device), "1", "2049", "700001"]).unwrap();
    clone_and_compare(&rig, &format!("{}p1", path(&device)));
}
