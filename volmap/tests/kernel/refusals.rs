//! Stacks whose bytes are not, or not always, where the layers say.

use std::fs;

use volmap::freeze::Method;
use volmap::frozen::Stability;

use crate::rig::{Rig, path, pattern, read_all, run};

#[test]
fn ext4_that_journals_data_by_default_is_never_direct() {
    let Some(rig) = Rig::ext4("ext4_that_journals_data_by_default_is_never_direct") else {
        return;
    };
    run("umount", &[path(&rig.mount)]).unwrap();
    run("tune2fs", &["-o", "journal_data", path(&rig.device)]).unwrap();
    run("mount", &[path(&rig.device), path(&rig.mount)]).unwrap();
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    // mountinfo does not show it.
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    assert_eq!(image.description().stability, Stability::Opaque);
    drop(image);
    // There O_DIRECT is not direct either, so the copy area is the worse for it.
    let live = rig.origin(&volume, &rig.mount.join("copy"));
    let image = live.freeze().unwrap();
    live.write_at(0, &pattern(1 << 20, 2), false).unwrap();
    assert_eq!(rig.read_as_proxy(&*image), (pattern(1 << 20, 1), 0));
}

#[test]
fn a_loop_device_that_caches_a_block_device_is_opaque() {
    let Some(mut rig) = Rig::new("a_loop_device_that_caches_a_block_device_is_opaque", 128, &[]) else {
        return;
    };
    let device = rig.device.clone();
    let upper = rig.attach(&device, &["--direct-io=off"]);
    let upper = path(&upper);
    run("mkfs.ext4", &["-q", upper]).unwrap();
    run("mount", &[upper, path(&rig.mount)]).unwrap();
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    assert_eq!(rig.read_as_proxy(&*image), (pattern(1 << 20, 1), 0));
    drop(image);
    // Past the cache it is as good as the device.
    run("losetup", &["--direct-io=on", upper]).unwrap();
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    assert_eq!(rig.read_as_proxy(&*image), (pattern(1 << 20, 1), 1 << 20));
    run("losetup", &["--direct-io=off", upper]).unwrap();
    assert_eq!(rig.read_as_proxy(&*image), (pattern(1 << 20, 1), 0));
    assert!(read_all(&*image) == pattern(1 << 20, 1));
}
