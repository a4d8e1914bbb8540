//! The file systems that are mounted from a block device.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::layers::mounts_of;
use crate::sys::DeviceNumber;

/// The mount point of every file system that is mounted from a device, opened; nothing for what is no device.
pub(super) fn of(volume: &File) -> io::Result<Vec<File>> {
    let metadata = volume.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Ok(Vec::new());
    }
    let device = DeviceNumber::from_stat(metadata.rdev());
    let mut found = Vec::new();
    for mount_point in mounts_of(device)? {
        let opened = File::open(mount_point)?;
        // Something else may be mounted on top of it.
        if DeviceNumber::from_stat(opened.metadata()?.dev()) == device {
            found.push(opened);
            // A file system is one, however often it is mounted.
            break;
        }
    }
    Ok(found)
}
