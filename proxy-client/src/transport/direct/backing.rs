//! Whether one path stands on another: an output must not lie on a LUN that is being read.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::directory::directory_of;
use crate::file_id::FileId;

/// Whether the bytes of `output` (which need not exist yet) lie on `lun`, or are it: through its file system, partitions,
/// device-mapper, md and loop devices, as sysfs and the table of mounts tell them.
///
/// # Errors
/// One of the paths cannot be looked at.
pub fn lies_on(output: &Path, lun: &Path) -> io::Result<bool> {
    let luns = same_bytes(FileId::of(&fs::metadata(lun)?));
    let mut seen = BTreeSet::new();
    let mut next = match fs::metadata(output) {
        Ok(metadata) => vec![FileId::of(&metadata)],
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = directory_of(output);
            let mut holders = vec![FileId::Device(fs::metadata(directory)?.dev())];
            holders.extend(mounted_from(directory));
            holders
        }
        Err(error) => return Err(error),
    };
    next.extend(mounted_from(output));
    while let Some(at) = next.pop() {
        if luns.contains(&at) {
            return Ok(true);
        }
        if seen.insert(at) {
            next.extend(below(at));
        }
    }
    Ok(false)
}

/// A LUN, and, where it is a loop device, the file whose bytes are its own: another loop device may stand on that.
fn same_bytes(lun: FileId) -> BTreeSet<FileId> {
    let mut same = BTreeSet::new();
    let mut next = Some(lun);
    while let Some(at) = next {
        if !same.insert(at) {
            break;
        }
        next = match at {
            FileId::Device(device) => backing_file(device).and_then(|path| fs::metadata(path).ok()),
            FileId::Inode { .. } => None,
        }
        .map(|metadata| FileId::of(&metadata));
    }
    same
}

/// The device that the file system of `path` was mounted from: the number of a btrfs file is no device's.
fn mounted_from(path: &Path) -> Option<FileId> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_PATH.bits())
        .open(path)
        .ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(mount))?;
    let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
    let metadata = fs::metadata(source).ok()?;
    metadata
        .file_type()
        .is_block_device()
        .then(|| FileId::of(&metadata))
}

fn sysfs_of(device: u64) -> PathBuf {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// The file under a loop device.
fn backing_file(device: u64) -> Option<PathBuf> {
    let path = fs::read_to_string(sysfs_of(device).join("loop/backing_file")).ok()?;
    Some(path.trim_end_matches('\n').into())
}

/// What directly holds the bytes of `at`; nothing where the system does not tell (a network file system, say).
fn below(at: FileId) -> Vec<FileId> {
    let device = match at {
        FileId::Inode { device, .. } => return vec![FileId::Device(device)],
        FileId::Device(device) => device,
    };
    let sysfs = sysfs_of(device);
    let mut found = Vec::new();
    if let Some(backing) = backing_file(device)
        && let Ok(metadata) = fs::metadata(&backing)
    {
        found.push(FileId::of(&metadata));
        found.extend(mounted_from(&backing));
    }
    if sysfs.join("partition").exists() {
        found.extend(
            fs::canonicalize(&sysfs)
                .ok()
                .and_then(|path| device_number(path.parent()?)),
        );
    }
    for members in fs::read_dir("/sys/fs/btrfs").into_iter().flatten().flatten() {
        let members = fs::read_dir(members.path().join("devices"));
        let members: Vec<FileId> = members
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|member| device_number(&member.path()))
            .collect();
        if members.contains(&at) {
            found.extend(members);
        }
    }
    for slave in fs::read_dir(sysfs.join("slaves")).into_iter().flatten().flatten() {
        found.extend(device_number(&slave.path()));
    }
    found
}

fn device_number(sysfs: &Path) -> Option<FileId> {
    let text = fs::read_to_string(sysfs.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(FileId::Device(nix::sys::stat::makedev(
        major.parse().ok()?,
        minor.parse().ok()?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lies_on_itself_and_not_on_its_neighbour() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert!(lies_on(&a, &a).unwrap());
        assert!(!lies_on(&a, &b).unwrap());
        assert!(!lies_on(&directory.path().join("new"), &b).unwrap());
        std::os::unix::fs::symlink(&a, directory.path().join("link")).unwrap();
        assert!(lies_on(&directory.path().join("link"), &a).unwrap());
    }
}
