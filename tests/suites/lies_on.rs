//! Which paths stand on a LUN: through loop devices, file systems and bind mounts.

use std::fs;
use std::path::Path;

use proxy_client::transport::direct::lies_on;
use tests::disk::{LoopDisk, Mounted, run, scratch};
use tests::needs_loop_devices;

#[test]
fn a_loop_device_is_its_file_and_so_is_every_other_on_it() {
    needs_loop_devices!();
    let directory = scratch();
    let a = LoopDisk::new(directory.path(), "lun", 1 << 20, 512);
    let b = LoopDisk::on(&a.lun, &[]);
    let c = LoopDisk::new(directory.path(), "other", 1 << 20, 512);
    // A loop device on a loop device.
    let d = LoopDisk::on(&b.device, &[]);
    for output in [&a.lun, &a.device, &b.device, &d.device] {
        assert!(lies_on(output, &a.device).unwrap(), "{}", output.display());
    }
    assert!(!lies_on(&c.device, &a.device).unwrap());
    assert!(!lies_on(&c.lun, &a.device).unwrap());
}

/// A bind mount, gone when dropped.
struct Bound<'a>(&'a Path);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

#[test]
fn file_systems_lie_on_their_devices() {
    needs_loop_devices!("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs");
    for make in ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"] {
        let mounted = Mounted::new(320 << 20, 512, make, &["-q"]);
        let (other, bound) = (mounted.outside().join("other"), mounted.outside().join("bound"));
        fs::write(&other, "other").unwrap();
        fs::create_dir(&bound).unwrap();
        run(
            "mount",
            &["--bind", mounted.path.to_str().unwrap(), bound.to_str().unwrap()],
        );
        let _bound = Bound(&bound);
        fs::write(mounted.path.join("old"), "old").unwrap();
        for output in [
            mounted.path.join("new"),
            mounted.path.join("old"),
            bound.join("new"),
        ] {
            assert!(
                lies_on(&output, &mounted.disk.device).unwrap(),
                "{make} {}",
                output.display()
            );
            assert!(
                lies_on(&output, &mounted.disk.lun).unwrap(),
                "{make} {}",
                output.display()
            );
            assert!(!lies_on(&output, &other).unwrap());
        }
    }
}
