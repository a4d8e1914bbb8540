//! Block devices, and file systems that are mounted from them.

use std::fs;

use tests::disk::{LoopDisk, Mounted, run, scratch};
use tests::needs_loop_devices;
use tests::program::{Host, fails};
use tests::site::text;

use super::frozen_of;

#[test]
fn devices_that_take_no_writes_are_of_one_instant_and_others_are_refused() {
    needs_loop_devices!();
    let directory = scratch();
    let disks: Vec<LoopDisk> = ["one", "two"]
        .iter()
        .map(|name| LoopDisk::new(directory.path(), name, 1 << 20, 512))
        .collect();
    let devices: Vec<&str> = disks.iter().map(|disk| text(&disk.device)).collect();
    let (socket, control) = (directory.path().join("s"), directory.path().join("c"));
    let (one, two) = (format!("one={}", devices[0]), format!("two={}", devices[1]));
    let arguments = [
        &[
            "--set",
            "luns",
            "--socket",
            text(&socket),
            "--control",
            text(&control),
            "--volume",
        ][..],
        &[&one, &two],
        &["--freeze", "static"],
    ]
    .concat();
    run("blockdev", &["--setro", devices[0]]);
    let error = fails("nbd-export", 1, &[&["serve"], &arguments[..]].concat());
    assert_eq!(error["kind"], "freeze");
    run("blockdev", &["--setro", devices[1]]);
    let host = Host::serve(&arguments);
    for export in ["one", "two"] {
        let about = frozen_of(text(&control), export);
        assert_eq!(about["set"]["held_by"], "read-only");
    }
    assert!(host.terminate().success());
    for device in devices {
        run("blockdev", &["--setrw", device]);
    }
}

#[test]
fn a_mounted_file_system_stands_for_its_device() {
    needs_loop_devices!("mkfs.ext4");
    let disk = Mounted::ext4(64 << 20);
    fs::write(disk.path.join("file"), b"x").unwrap();
    let mount_point = text(&disk.path);
    // Nothing freezes a loop device under its mount; but it is the right device that cannot be.
    let error = fails(
        "nbd-export",
        1,
        &["serve", "--set", "s", "--filesystem", mount_point],
    );
    let message = error["message"].as_str().unwrap();
    assert_eq!(error["kind"], "freeze");
    assert!(message.contains(text(&disk.disk.device)), "{message}");
    let inside = disk.path.join("lost+found");
    let error = fails(
        "nbd-export",
        2,
        &["serve", "--set", "s", "--filesystem", text(&inside)],
    );
    assert_eq!(error["kind"], "usage");
}
