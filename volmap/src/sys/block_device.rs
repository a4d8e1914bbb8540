//! Block devices: size, block size, read-only state.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;

use nix::libc;

use super::ioctl;

const BLKROSET: libc::Ioctl = 0x125d;
const BLKROGET: libc::Ioctl = 0x125e;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKGETDISKSEQ: libc::Ioctl = 0x8008_1280;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

/// What O_DIRECT wants on files, whatever lies under them.
const FILE_DIRECT_BLOCK: u32 = 4096;

/// Size in bytes of a file or of a block device.
///
/// # Errors
/// Of `fstat` or the `ioctl`.
pub fn size(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Ok(metadata.len());
    }
    let mut size = 0u64;
    // SAFETY: the kernel writes a u64.
    unsafe { ioctl::with_argument(file, BLKGETSIZE64, &mut size) }?;
    Ok(size)
}

/// The unit of O_DIRECT reads in bytes, a power of two: the logical block size of a block device, 4096 for a file.
///
/// # Errors
/// Of `fstat` or the `ioctl`; `InvalidData` when the device names a size that is no power of two.
pub fn logical_block_size(file: &File) -> io::Result<u32> {
    if !file.metadata()?.file_type().is_block_device() {
        return Ok(FILE_DIRECT_BLOCK);
    }
    let mut size: libc::c_int = 0;
    // SAFETY: the kernel writes an int.
    unsafe { ioctl::with_argument(file, BLKSSZGET, &mut size) }?;
    u32::try_from(size)
        .ok()
        .filter(|s| s.is_power_of_two())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The sequence number of the disk, which changes with its medium: another file behind a loop device, another disk in its place.
///
/// # Errors
/// `ENOTTY`: a kernel before 5.15, or not a block device.
pub fn disk_sequence(file: &File) -> io::Result<u64> {
    let mut sequence = 0u64;
    // SAFETY: the kernel writes a u64.
    unsafe { ioctl::with_argument(file, BLKGETDISKSEQ, &mut sequence) }?;
    Ok(sequence)
}

/// Whether the kernel refuses writes to this block device.
///
/// # Errors
/// `ENOTTY`: not a block device.
pub fn is_read_only(file: &File) -> io::Result<bool> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: the kernel writes an int.
    unsafe { ioctl::with_argument(file, BLKROGET, &mut read_only) }?;
    Ok(read_only != 0)
}

/// Has the kernel refuse, or take, writes to this block device on this machine.
///
/// # Errors
/// `PermissionDenied`: wants `CAP_SYS_ADMIN`. `ENOTTY`: not a block device.
pub fn set_read_only(file: &File, read_only: bool) -> io::Result<()> {
    let mut argument = libc::c_int::from(read_only);
    // SAFETY: the kernel reads an int.
    unsafe { ioctl::with_argument(file, BLKROSET, &mut argument) }.map(drop)
}

/// Tells a block device that nobody needs a range, in whole logical blocks; what it reads as afterwards is not defined.
///
/// # Errors
/// `EOPNOTSUPP`: the device takes no such advice.
pub fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut range = [offset, len];
    // SAFETY: the kernel reads two u64.
    unsafe { ioctl::with_argument(file, BLKDISCARD, &mut range) }.map(drop)
}
