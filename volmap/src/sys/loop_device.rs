//! Loop devices: which file they show.

use std::fs::File;
use std::io;

use nix::libc;

use super::DeviceNumber;
use super::ioctl;

const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// What a loop device shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoopStatus {
    /// The device of the file system that the backing file lies in.
    pub backing_device: DeviceNumber,
    /// The inode number of the backing file.
    pub backing_inode: u64,
    /// The device number of the backing file where it is a block device itself.
    pub backing_block_device: DeviceNumber,
    /// Byte offset in the backing file where the device begins.
    pub offset: u64,
    /// Bytes of the backing file that are shown at most; 0: all.
    pub size_limit: u64,
    /// Whether it goes past the page cache of what it shows. Without that, what it says is written may be in memory only.
    pub direct_io: bool,
}

/// `struct loop_info64` of `include/uapi/linux/loop.h`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// What a loop device shows now.
///
/// # Errors
/// `ENXIO`: nothing. `ENOTTY`: not a loop device.
pub fn status(file: &File) -> io::Result<LoopStatus> {
    let mut info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    // SAFETY: the kernel writes a struct loop_info64, which LoopInfo64 is: all integers.
    unsafe { ioctl::with_argument(file, LOOP_GET_STATUS64, &mut info) }?;
    Ok(LoopStatus {
        backing_device: DeviceNumber::from_kernel(info.device),
        backing_inode: info.inode,
        backing_block_device: DeviceNumber::from_kernel(info.rdevice),
        offset: info.offset,
        size_limit: info.sizelimit,
        direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
    }
}
