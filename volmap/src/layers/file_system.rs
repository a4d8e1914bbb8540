//! Which files lie on their file system's device as FIEMAP says, and which do not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use uuid::Uuid;

use super::mount_info::Mount;
use super::sysfs::Sysfs;
use crate::identity::{Identity, IdentityError};
use crate::sys::file_system::{self, FileSystemType};
use crate::sys::{DeviceNumber, inode_flags};

/// The file systems whose FIEMAP is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Xfs,
    Ext4,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }
}

/// A file system whose extents are byte ranges of one block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct FileSystem {
    pub(super) kind: Kind,
    pub(super) device: DeviceNumber,
    pub(super) mount_point: String,
}

/// Why a file's extents are not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0} has addresses of its own between its files and its devices, which are not understood")]
    Type(&'static str),
    #[error("on btrfs what is overwritten moves, so only a file that nobody writes to is followed")]
    Moves,
    #[error("only XFS, ext4 and btrfs are understood, not a file system of type {0:#x}")]
    Number(i64),
    #[error("its file system is mounted as '{0}', and only 'xfs' and 'ext4' are understood")]
    MountType(String),
    #[error("its file system is not among the mounts that can be seen here")]
    NoMount,
    #[error("its file system is not on one block device")]
    NoDevice,
    #[error("the options of its ext4 cannot be read, and data=journal would not show elsewhere: {0}")]
    Options(io::Error),
    #[error(
        "ext4 with data=journal does not have the file's bytes in their place; mount it with data=ordered"
    )]
    DataJournal,
    #[error("its data goes through the ext4 journal; end that with chattr -j")]
    JournalledFile,
    #[error("the file is encrypted: what lies on the disk is ciphertext")]
    Encrypted,
    #[error("the file may be compressed; end that with chattr -c")]
    Compressed,
    #[error("the file lies on the realtime device of its XFS, which is not understood")]
    Realtime,
    #[error("its flags cannot be read: {0}")]
    Flags(io::Error),
    #[error("it could not be looked at: {0}")]
    Io(#[from] io::Error),
}

impl FileSystem {
    /// The file system of a regular file, if the file's bytes lie where FIEMAP says.
    pub(super) fn of(file: &File, sysfs: &Sysfs) -> Result<Self, Refusal> {
        let kind = match file_system::of(file)?.kind {
            FileSystemType::Xfs => Kind::Xfs,
            FileSystemType::Ext => Kind::Ext4,
            FileSystemType::Btrfs => return Err(Refusal::Moves),
            FileSystemType::Overlay => return Err(Refusal::Type("overlayfs")),
            FileSystemType::Tmpfs => return Err(Refusal::Type("tmpfs")),
            FileSystemType::Other(number) => return Err(Refusal::Number(number)),
        };
        let device = DeviceNumber::from_stat(file.metadata()?.dev());
        if device.major == 0 {
            return Err(Refusal::NoDevice);
        }
        let mount = Mount::of_device(device)?.ok_or(Refusal::NoMount)?;
        if mount.kind != kind.name() {
            return Err(Refusal::MountType(mount.kind));
        }
        if kind == Kind::Ext4 && ext4_journals_data(&sysfs.name(device)).map_err(Refusal::Options)? {
            return Err(Refusal::DataJournal);
        }
        let flags = inode_flags::get(file).map_err(Refusal::Flags)?;
        if flags.journals_data() {
            return Err(Refusal::JournalledFile);
        }
        if flags.is_encrypted() {
            return Err(Refusal::Encrypted);
        }
        if flags.is_compressed() {
            return Err(Refusal::Compressed);
        }
        if kind == Kind::Xfs && inode_flags::is_realtime(file).map_err(Refusal::Flags)? {
            return Err(Refusal::Realtime);
        }
        Ok(Self {
            kind,
            device,
            mount_point: mount.mount_point,
        })
    }

    /// `xfs:UUID` or `ext4:UUID`, from the superblock; with the device number where that may not be read.
    pub(super) fn identity(&self, sysfs: &Sysfs) -> Result<Identity, IdentityError> {
        match self.uuid(sysfs) {
            Ok(uuid) => Identity::new(self.kind.name(), &uuid.to_string()),
            Err(_) => self.identity_by_number(),
        }
    }

    /// `xfs:dev-8:1`: unique on this machine, until it starts anew.
    pub(super) fn identity_by_number(&self) -> Result<Identity, IdentityError> {
        Identity::new(self.kind.name(), &format!("dev-{}", self.device))
    }

    fn uuid(&self, sysfs: &Sysfs) -> io::Result<Uuid> {
        let device = File::open(sysfs.node(self.device))?;
        if DeviceNumber::from_stat(device.metadata()?.rdev()) != self.device {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut start = [0; 2048];
        device.read_exact_at(&mut start, 0)?;
        superblock_uuid(self.kind, &start).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Whether an ext4 file system writes data through its journal. Of mountinfo this cannot be learnt: it leaves out what the superblock
/// has for a default (`tune2fs -o journal_data`).
fn ext4_journals_data(device_name: &str) -> io::Result<bool> {
    // The kernel writes a slash in the name of a device as an exclamation mark.
    let name = device_name.replace('/', "!");
    let options = fs::read_to_string(format!("/proc/fs/ext4/{name}/options"))?;
    Ok(options.lines().any(|option| option == "data=journal"))
}

/// The UUID in the first 2048 bytes of a device. XFS: magic at 0, UUID at 32. ext4: superblock at 1024, magic 0xEF53 (little endian)
/// at 0x38 of it, UUID at 0x68.
fn superblock_uuid(kind: Kind, start: &[u8; 2048]) -> Option<Uuid> {
    let (found, at) = match kind {
        Kind::Xfs => (start.starts_with(b"XFSB"), 32),
        Kind::Ext4 => (start[1024 + 0x38..].starts_with(&[0x53, 0xef]), 1024 + 0x68),
    };
    let uuid = Uuid::from_slice(&start[at..at + 16]).ok()?;
    (found && !uuid.is_nil()).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_only_behind_their_magic() {
        let mut start = [0; 2048];
        start[32..48].fill(7);
        start[1024 + 0x68..1024 + 0x78].fill(8);
        assert_eq!(superblock_uuid(Kind::Xfs, &start), None);
        assert_eq!(superblock_uuid(Kind::Ext4, &start), None);
        start[..4].copy_from_slice(b"XFSB");
        start[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(
            superblock_uuid(Kind::Xfs, &start),
            Some(Uuid::from_bytes([7; 16]))
        );
        assert_eq!(
            superblock_uuid(Kind::Ext4, &start),
            Some(Uuid::from_bytes([8; 16]))
        );
    }

    #[test]
    fn a_file_in_procfs_is_refused() {
        let file = File::open("/proc/self/status").unwrap();
        assert!(matches!(
            FileSystem::of(&file, &Sysfs::at("/sys")),
            Err(Refusal::Number(0x9fa0))
        ));
    }
}
