//! `restore` to block devices: needs root and loop devices, and says so where there are none.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::OFlag;
use proxy_client::error::{ErrorKind, Result};
use proxy_client::job::restore::{RestoreOptions, Restored, restore};
use proxy_client::transport::direct::{DirectOpener, LunOpener};
use volmap::sys::block_device::{is_read_only, set_read_only};

use crate::fixture::{Fixture, VOLUME, in_runtime, old_data, quiet};

/// A loop device, detached when it is dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None` where there are no loop devices.
    fn on(file: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()
            .filter(|output| output.status.success());
        let Some(output) = output else {
            skip("no loop devices here");
            return None;
        };
        let device = Self(String::from_utf8(output.stdout).unwrap().trim_end().into());
        // A proxy that was killed while it read from this loop device has left it read-only.
        Command::new("blockdev")
            .arg("--setrw")
            .arg(&device.0)
            .status()
            .ok();
        Some(device)
    }
}

/// Says that a test did not run: on stderr, and in the file that `SKIP_LOG` names, where `tests/run` counts it.
fn skip(why: &str) {
    let line = format!(
        "SKIP: {}: {why}\n",
        std::thread::current().name().unwrap_or("a test")
    );
    eprint!("{line}");
    if let Some(log) = std::env::var_os("SKIP_LOG") {
        let mut log = File::options().create(true).append(true).open(log).unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").arg("-d").arg(&self.0).status().ok();
    }
}

fn run(fixture: &Fixture, output: &Path, force: bool) -> Result<Restored> {
    let options = RestoreOptions {
        force,
        ..RestoreOptions::to_path(fixture.image_path(), output)
    };
    in_runtime(restore(&options, &mut quiet))
}

const BEHIND: usize = 1 << 20;

/// A file full of old data, an MiB longer than the volume, and a loop device on it.
fn device(fixture: &Fixture) -> Option<(PathBuf, Loop)> {
    let file = fixture.path("lun");
    let length = (fixture.plain.len() + BEHIND).next_multiple_of(4096);
    old_data(&file, length);
    let device = Loop::on(&file)?;
    Some((file, device))
}

fn read_device(device: &Loop) -> Vec<u8> {
    std::fs::read(&device.0).unwrap()
}

#[test]
fn old_data_on_a_device_do_not_survive_and_what_lies_behind_does() {
    let fixture = Fixture::new(VOLUME);
    let Some((_, device)) = device(&fixture) else {
        return;
    };
    let restored = run(&fixture, &device.0, false).unwrap();
    let bytes = read_device(&device);
    assert!(bytes[..fixture.plain.len()] == fixture.plain);
    let behind = &bytes[fixture.plain.len()..];
    assert!(behind.iter().all(|byte| *byte == 0xa5));
    assert_eq!(restored.left_alone, behind.len() as u64);
}

#[test]
fn a_device_that_holds_something_wants_force() {
    let fixture = Fixture::new(VOLUME);
    let Some((_, device)) = device(&fixture) else {
        return;
    };
    let raw = File::options().write(true).open(&device.0).unwrap();
    raw.write_all_at(b"LABELONE", 512).unwrap();
    raw.sync_all().unwrap();
    drop(raw);
    let error = run(&fixture, &device.0, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);
    assert!(error.message().contains("LVM"), "{error}");
    assert_eq!(read_device(&device)[2000], 0xa5);
    run(&fixture, &device.0, true).unwrap();
    assert!(read_device(&device)[..fixture.plain.len()] == fixture.plain);
}

#[test]
fn a_device_in_use_or_too_small_is_refused_even_with_force() {
    let fixture = Fixture::new(VOLUME);
    let Some((file, device)) = device(&fixture) else {
        return;
    };
    let untouched = || assert!(read_device(&device).iter().all(|byte| *byte == 0xa5));
    // The file under the loop device.
    let error = run(&fixture, &file, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetBusy);
    assert!(error.message().contains("loop"), "{error}");
    untouched();
    // A holder as LVM, md and swap are.
    let holder = File::options()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(&device.0)
        .unwrap();
    assert_eq!(
        run(&fixture, &device.0, true).unwrap_err().kind(),
        ErrorKind::TargetBusy
    );
    drop(holder);
    untouched();
    // A reader of the LUN.
    let reader = File::open(&device.0).unwrap();
    reader.lock_shared().unwrap();
    assert_eq!(
        run(&fixture, &device.0, true).unwrap_err().kind(),
        ErrorKind::TargetBusy
    );
    drop(reader);
    untouched();
    // A device one sector smaller than the volume needs.
    let small_file = fixture.path("small");
    old_data(&small_file, fixture.plain.len() / 512 * 512);
    if let Some(small) = Loop::on(&small_file) {
        assert_eq!(
            run(&fixture, &small.0, true).unwrap_err().kind(),
            ErrorKind::TargetTooSmall
        );
    }
    untouched();
}

#[test]
fn a_mounted_device_is_refused_even_with_force() {
    let fixture = Fixture::new(VOLUME);
    let Some((_, device)) = device(&fixture) else {
        return;
    };
    let mount_point = fixture.path("mnt");
    std::fs::create_dir(&mount_point).unwrap();
    let works = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    if !works(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0))
        || !works(Command::new("mount").arg(&device.0).arg(&mount_point))
    {
        eprintln!("skipped: mkfs.ext4 or mount does not work here");
        return;
    }
    std::fs::write(mount_point.join("precious"), b"p").unwrap();
    let result = run(&fixture, &device.0, true);
    let kept = std::fs::read(mount_point.join("precious")).unwrap();
    assert!(works(Command::new("umount").arg(&mount_point)));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TargetBusy);
    assert_eq!(kept, b"p");
    assert_eq!(
        run(&fixture, &device.0, false).unwrap_err().kind(),
        ErrorKind::TargetNotEmpty
    );
}

/// Nothing on this machine writes to a LUN while it is read, and nothing stays behind when it was.
#[test]
fn a_lun_is_read_only_while_it_is_read() {
    let fixture = Fixture::new(VOLUME);
    let Some((_, device)) = device(&fixture) else {
        return;
    };
    let looked_at = File::open(&device.0).unwrap();
    assert!(!is_read_only(&looked_at).unwrap());
    let lun = DirectOpener.open(&device.0).unwrap();
    assert!(is_read_only(&looked_at).unwrap());
    drop(lun);
    assert!(!is_read_only(&looked_at).unwrap());
}

/// A reader of a LUN locks the file that it was given; a loop device on that file is the same disk.
#[test]
fn a_device_on_a_lun_that_is_being_read_is_refused_even_with_force() {
    let fixture = Fixture::new(VOLUME);
    let Some((file, device)) = device(&fixture) else {
        return;
    };
    let Some(nested) = Loop::on(&device.0) else { return };
    let reader = File::open(&file).unwrap();
    reader.lock_shared().unwrap();
    for target in [&device, &nested] {
        let error = run(&fixture, &target.0, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetBusy);
        assert!(error.message().contains("LUN"), "{error}");
    }
    drop(reader);
    drop(nested);
    run(&fixture, &device.0, true).unwrap();
}

#[test]
fn a_read_only_device_is_refused_before_it_is_written() {
    let fixture = Fixture::new(VOLUME);
    let Some((_, device)) = device(&fixture) else {
        return;
    };
    let file = File::open(&device.0).unwrap();
    set_read_only(&file, true).unwrap();
    let error = run(&fixture, &device.0, true).unwrap_err();
    set_read_only(&file, false).unwrap();
    assert_eq!(error.kind(), ErrorKind::TargetBusy);
    assert!(error.message().contains("--setrw"), "{error}");
}
