//! Whether something uses the target of a restore.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use volmap::sys::{DeviceNumber, lease};

use crate::file_id::FileId;

/// udev locks a device for the moment in which it looks at it; a reader of a LUN does so for hours.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Takes the lock that readers of a LUN share; false when somebody holds it.
pub(super) fn lock(file: &File) -> io::Result<bool> {
    for attempt in 0..LOCK_ATTEMPTS {
        if attempt > 0 {
            thread::sleep(LOCK_PAUSE);
        }
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether anybody else has this file open: then no write lease is granted. Where leases do not work nobody knows, and
/// the answer is no.
pub(super) fn is_open_elsewhere(file: &File) -> bool {
    match lease::take_write(file) {
        Ok(()) => {
            if let Err(error) = lease::release(file) {
                tracing::debug!(%error, "the lease on the target stays until it is closed");
            }
            false
        }
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Whether one of two devices is a partition of the other: then they share bytes.
pub(super) fn is_part_of_other(one: u64, other: u64) -> bool {
    is_part_of_other_in(Path::new("/sys/dev/block"), one, other)
}

fn is_part_of_other_in(devices: &Path, one: u64, other: u64) -> bool {
    // A partition stands in the directory of its disk.
    let place = |device| fs::canonicalize(devices.join(DeviceNumber::from_stat(device).to_string())).ok();
    match (place(one), place(other)) {
        (Some(one), Some(other)) => one.parent() == Some(&*other) || other.parent() == Some(&*one),
        _ => false,
    }
}

/// Where a device is mounted, by the text of `/proc/self/mountinfo`.
pub(super) fn mount_point(device: u64, mountinfo: &str) -> Option<&str> {
    let number = DeviceNumber::from_stat(device);
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let mounted = fields.nth(2)?;
        let point = fields.nth(1)?;
        let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
        // btrfs mounts have a number of their own: there the source names the device.
        let is_source =
            || fs::metadata(source).is_ok_and(|metadata| FileId::of(&metadata) == FileId::Device(device));
        (DeviceNumber::parse(mounted) == Some(number) || is_source()).then_some(point)
    })
}

/// The loop device that stands on a file, by what `/sys/block` says.
pub(super) fn loop_device_on(id: FileId) -> Option<String> {
    let entries = fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let metadata = fs::metadata(Path::new(backing.trim_end_matches('\n'))).ok()?;
        (FileId::of(&metadata) == id).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// The file under a loop device, or under a partition of one, if somebody holds its lock: a LUN that is being read.
pub(super) fn locked_file_under(device: u64) -> Option<PathBuf> {
    let number = DeviceNumber::from_stat(device);
    let sysfs = PathBuf::from(format!("/sys/dev/block/{}:{}", number.major, number.minor));
    let backing = ["loop/backing_file", "../loop/backing_file"]
        .iter()
        .find_map(|name| fs::read_to_string(sysfs.join(name)).ok())?;
    let path = PathBuf::from(backing.trim_end_matches('\n'));
    let file = File::open(&path).ok()?;
    if matches!(lock(&file), Ok(false)) {
        return Some(path);
    }
    // A loop device may stand on another.
    match FileId::of(&file.metadata().ok()?) {
        FileId::Device(device) => locked_file_under(device),
        FileId::Inode { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let text = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/no/such rw\n\
                    30 22 0:40 / /mnt/b rw - btrfs /dev/no/such/either rw\n\
                    31 22 7:3 /sub /mnt/x rw,noatime shared:2 master:1 - xfs /dev/no/loop3 rw\n";
        let device = nix::sys::stat::makedev;
        assert_eq!(mount_point(device(8, 1), text), Some("/"));
        assert_eq!(mount_point(device(7, 3), text), Some("/mnt/x"));
        assert_eq!(mount_point(device(7, 4), text), None);
        assert_eq!(mount_point(device(7, 3), "nonsense\n\n1 2 3\n"), None);
    }

    #[test]
    fn a_disk_and_its_partitions_share_bytes_and_partitions_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (number, place) in [
            ("8:0", "block/sda"),
            ("8:1", "block/sda/sda1"),
            ("8:2", "block/sda/sda2"),
            ("8:16", "block/sdb"),
        ] {
            fs::create_dir_all(at(place)).unwrap();
            std::os::unix::fs::symlink(at(place), at(number)).unwrap();
        }
        let share = |one, other| {
            let number = |minor| nix::sys::stat::makedev(8, minor);
            is_part_of_other_in(directory.path(), number(one), number(other))
        };
        assert!(share(0, 1) && share(2, 0));
        assert!(!share(1, 2) && !share(0, 16) && !share(16, 1) && !share(0, 3));
    }

    #[test]
    fn a_shared_lock_of_a_reader_keeps_us_out() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(path.path()).unwrap();
        reader.lock_shared().unwrap();
        let writer = File::options().write(true).open(path.path()).unwrap();
        assert!(!lock(&writer).unwrap());
        drop(reader);
        assert!(lock(&writer).unwrap());
    }

    #[test]
    fn another_opener_is_noticed() {
        let (_, path) = tempfile::NamedTempFile::new().unwrap().into_parts();
        let file = File::options().write(true).open(&path).unwrap();
        lease::take_write(&file).expect("temporary files are where leases work");
        lease::release(&file).unwrap();
        assert!(!is_open_elsewhere(&file));
        let _reader = File::open(&path).unwrap();
        assert!(is_open_elsewhere(&file));
    }
}
