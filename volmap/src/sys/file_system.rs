//! What a file system is, and what it does with ranges of a file.

use std::fs::File;
use std::io;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::statfs::fstatfs;

use super::ioctl;

const FIFREEZE: libc::Ioctl = 0xc004_5877;
const FITHAW: libc::Ioctl = 0xc004_5878;

/// The kind of a file system, by the number that `statfs` gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystemType {
    /// XFS.
    Xfs,
    /// ext4, and ext2 and ext3, which share its number.
    Ext,
    /// btrfs.
    Btrfs,
    /// tmpfs.
    Tmpfs,
    /// overlayfs.
    Overlay,
    /// Any other, with its number.
    Other(i64),
}

/// What `statfs` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// Its kind.
    pub kind: FileSystemType,
    /// Block size in bytes.
    pub block_size: u64,
}

/// What the file system that a file lies in says of itself.
///
/// # Errors
/// Of `fstatfs`.
pub fn of(file: &File) -> io::Result<FileSystem> {
    let told = fstatfs(file)?;
    let kind = match told.filesystem_type().0 {
        0x5846_5342 => FileSystemType::Xfs,
        0xef53 => FileSystemType::Ext,
        0x9123_683e => FileSystemType::Btrfs,
        0x0102_1994 => FileSystemType::Tmpfs,
        0x794c_7630 => FileSystemType::Overlay,
        other => FileSystemType::Other(other),
    };
    let block_size = u64::try_from(told.block_size()).map_err(io::Error::other)?;
    Ok(FileSystem { kind, block_size })
}

/// Holds the file system that a file or directory lies in: what was written is on its device at the return, and writers wait until
/// [`thaw`]. It stays so when the process ends.
///
/// # Errors
/// `EBUSY`: somebody froze it before. `EPERM`: wants `CAP_SYS_ADMIN`. `EOPNOTSUPP`: this file system cannot be frozen.
pub fn freeze(file: &File) -> io::Result<()> {
    // SAFETY: FIFREEZE ignores its argument.
    unsafe { ioctl::with_number(file, FIFREEZE, 0) }.map(drop)
}

/// Ends what [`freeze`] began, by whomever.
///
/// # Errors
/// `EINVAL`: it is not frozen. `EPERM`.
pub fn thaw(file: &File) -> io::Result<()> {
    // SAFETY: FITHAW ignores its argument.
    unsafe { ioctl::with_number(file, FITHAW, 0) }.map(drop)
}

/// Gives the blocks of a range back; it reads as zeroes. The size stays.
///
/// # Errors
/// `EOPNOTSUPP`: not on this file system or device.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    change_range(
        file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
}

/// Makes a range read as zeroes and keeps it allocated. The size stays.
///
/// # Errors
/// `EOPNOTSUPP`: not on this file system or device.
pub fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    change_range(
        file,
        FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
}

/// Allocates a range, growing the file where it is shorter; what was not there before reads as zeroes.
///
/// # Errors
/// `StorageFull`; `EOPNOTSUPP`: not on this file system.
pub fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    change_range(file, FallocateFlags::empty(), offset, len)
}

fn change_range(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(fallocate(file, mode, offset, len)?)
}
