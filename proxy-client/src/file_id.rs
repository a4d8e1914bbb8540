//! What a file is, whatever it is called.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// A block device by its number, everything else by its inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum FileId {
    Device(u64),
    Inode { device: u64, inode: u64 },
}

impl FileId {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Device(metadata.rdev())
        } else {
            Self::Inode {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        }
    }
}
