//! Flags of an inode: those of `chattr`, and the XFS ones.

use std::fs::File;
use std::io;

use nix::libc;

use super::ioctl;

const FS_IOC_GETFLAGS: libc::Ioctl = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::Ioctl = 0x4008_6602;
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;

const FS_COMPR_FL: u32 = 0x4;
const FS_IMMUTABLE_FL: u32 = 0x10;
const FS_ENCRYPT_FL: u32 = 0x800;
const FS_JOURNAL_DATA_FL: u32 = 0x4000;
const FS_NOCOW_FL: u32 = 0x80_0000;
const FS_XFLAG_REALTIME: u32 = 0x1;

/// The flags of `chattr`, as the file system gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InodeFlags(u32);

impl InodeFlags {
    /// Nobody can write to, truncate, defragment, deduplicate into or unlink the file (`chattr +i`).
    pub fn is_immutable(self) -> bool {
        self.0 & FS_IMMUTABLE_FL != 0
    }

    /// Data goes through the journal of ext4 (`chattr +j`).
    pub fn journals_data(self) -> bool {
        self.0 & FS_JOURNAL_DATA_FL != 0
    }

    /// Overwrites of unshared blocks happen in place, and without checksums, on a file system that else writes elsewhere (`chattr +C`).
    pub fn is_nocow(self) -> bool {
        self.0 & FS_NOCOW_FL != 0
    }

    /// What lies on the disk is ciphertext.
    pub fn is_encrypted(self) -> bool {
        self.0 & FS_ENCRYPT_FL != 0
    }

    /// What lies on the disk may be compressed.
    pub fn is_compressed(self) -> bool {
        self.0 & FS_COMPR_FL != 0
    }
}

/// The flags of a file.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP`: the file system has none.
pub fn get(file: &File) -> io::Result<InodeFlags> {
    let mut flags = [0u32; 2];
    // SAFETY: the kernel writes an int, though the request number says long; there is room for either.
    unsafe { ioctl::with_argument(file, FS_IOC_GETFLAGS, &mut flags) }?;
    Ok(InodeFlags(flags[0]))
}

/// Sets or clears the immutable flag, leaving the others alone. A read-only file is enough.
///
/// # Errors
/// `PermissionDenied`: wants `CAP_LINUX_IMMUTABLE`. `ENOTTY` or `EOPNOTSUPP`: the file system has no such flag.
pub fn set_immutable(file: &File, immutable: bool) -> io::Result<()> {
    set(file, FS_IMMUTABLE_FL, immutable)
}

/// Has overwrites happen in place from now on (`chattr +C`). For empty files.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP`: the file system has no such flag.
pub fn set_nocow(file: &File) -> io::Result<()> {
    set(file, FS_NOCOW_FL, true)
}

fn set(file: &File, flag: u32, on: bool) -> io::Result<()> {
    let InodeFlags(old) = get(file)?;
    let new = if on { old | flag } else { old & !flag };
    let mut argument = [new, 0];
    // SAFETY: the kernel reads an int, though the request number says long; there is room for either.
    unsafe { ioctl::with_argument(file, FS_IOC_SETFLAGS, &mut argument) }.map(drop)
}

/// `struct fsxattr` of `include/uapi/linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    project: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// Whether the data of an XFS file lies on the realtime device, not on the data device.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP`: the file system has no such flags.
pub fn is_realtime(file: &File) -> io::Result<bool> {
    let mut attributes = FsXattr::default();
    // SAFETY: the kernel writes a struct fsxattr: 28 bytes, as the request number says, of plain integers.
    unsafe { ioctl::with_argument(file, FS_IOC_FSGETXATTR, &mut attributes) }?;
    Ok(attributes.xflags & FS_XFLAG_REALTIME != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_in_the_request_number() {
        assert_eq!(
            size_of::<FsXattr>(),
            usize::try_from(FS_IOC_FSGETXATTR >> 16 & 0x3fff).unwrap()
        );
    }
}
