//! To block devices, on loop devices.

use std::os::unix::fs::MetadataExt;

use tests::disk::LoopDisk;
use tests::{needs_loop_devices, volume};

use super::*;

/// A loop device full of old data, a few MiB larger than the volume.
fn full(backup: &Backup, name: &str, size: u64) -> LoopDisk {
    let disk = LoopDisk::new(backup.directory.path(), name, size, 512);
    std::fs::write(&disk.device, vec![volume::OLD; usize::try_from(size).unwrap()]).unwrap();
    disk
}

fn assert_all_old(disk: &LoopDisk) {
    assert!(
        std::fs::read(&disk.device)
            .unwrap()
            .iter()
            .all(|byte| *byte == volume::OLD)
    );
}

#[test]
fn old_data_on_a_device_do_not_survive() {
    needs_loop_devices!("nbdkit");
    let backup = Backup::new();
    let disk = full(&backup, "lun", 40 * MIB);
    backup.assert_restored(&disk.device, &[]);
    // Seen past every cache too, and what lies behind the volume is left alone.
    assert_begins_with(&disk.lun, &backup.volume);
    let bytes = std::fs::read(&disk.device).unwrap();
    assert!(bytes[32 << 20..].iter().all(|byte| *byte == volume::OLD));
}

/// What a thin volume would have to allocate.
#[test]
fn a_device_gets_the_space_of_holes_back() {
    needs_loop_devices!("nbdkit");
    let backup =
        Backup::of(|path| volume::sparse(path, 32 * MIB, &[4 * MIB..5 * MIB, 20 * MIB..20 * MIB + 1]));
    let disk = full(&backup, "lun", 32 * MIB);
    disk::run("sync", &[disk.lun.to_str().unwrap()]);
    let allocated = || std::fs::metadata(&disk.lun).unwrap().blocks() * 512;
    assert!(allocated() >= 32 * MIB);
    backup.assert_restored(&disk.device, &[]);
    assert!(allocated() < 4 * MIB, "{}", allocated());
}

#[test]
fn a_volume_of_no_whole_block_fits_a_device() {
    needs_loop_devices!("nbdkit");
    let backup = Backup::of(|path| volume::dense(path, 3 * MIB + 1));
    let disk = LoopDisk::new(backup.directory.path(), "lun", 4 * MIB, 4096);
    backup.assert_restored(&disk.device, &[]);
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    needs_loop_devices!("nbdkit");
    let backup = Backup::new();
    let disk = full(&backup, "lun", 32 * MIB - 512);
    backup.assert_refused(&disk.device, &["--force"], "target-too-small");
    assert_all_old(&disk);
    backup.assert_restored(&full(&backup, "fits", 32 * MIB).device, &[]);
}

#[test]
fn a_mounted_device_is_refused_and_an_unmounted_one_wants_force() {
    needs_loop_devices!("nbdkit", "mkfs.ext4");
    let backup = Backup::new();
    let mounted = disk::Mounted::ext4(64 * MIB);
    std::fs::write(mounted.path.join("precious"), "p").unwrap();
    backup.assert_refused(&mounted.disk.device, &["--force"], "target-busy");
    assert_eq!(std::fs::read(mounted.path.join("precious")).unwrap(), b"p");

    let disk = LoopDisk::new(backup.directory.path(), "lun", 64 * MIB, 512);
    let device = disk.device.to_str().unwrap();
    disk::run("mkfs.ext4", &["-q", "-F", device]);
    backup.assert_refused(&disk.device, &[], "target-not-empty");
    disk::run("fsck.ext4", &["-fn", device]);
    backup.assert_restored(&disk.device, &["--force"]);
}

#[test]
fn known_signatures_are_refused_without_force() {
    needs_loop_devices!("nbdkit", "mkfs.xfs", "mkswap");
    let backup = Backup::new();
    for (program, arguments) in [("mkfs.xfs", &["-q", "-f"][..]), ("mkswap", &[])] {
        let disk = LoopDisk::new(backup.directory.path(), program, 320 * MIB, 512);
        disk::run(program, &[arguments, &[disk.device.to_str().unwrap()]].concat());
        backup.assert_refused(&disk.device, &[], "target-not-empty");
    }
}

/// What reads a LUN shares a lock on it.
#[test]
fn a_lun_that_is_being_read_is_refused() {
    needs_loop_devices!("nbdkit");
    let backup = Backup::new();
    let disk = full(&backup, "lun", 32 * MIB);
    let reader = File::open(&disk.device).unwrap();
    reader.lock_shared().unwrap();
    backup.assert_refused(&disk.device, &["--force"], "target-busy");
    drop(reader);
    assert_all_old(&disk);
    backup.assert_refused(&disk.lun, &["--force"], "target-busy");
    assert_all_old(&disk);
    backup.assert_restored(&disk.device, &["--force"]);
}
