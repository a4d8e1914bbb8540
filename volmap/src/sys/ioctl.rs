//! One place for the `ioctl` call itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// An `ioctl` whose argument points to a `T`.
///
/// # Safety
/// The kernel reads and writes no more than `size_of::<T>()` bytes for this request, and every bit pattern that it may leave there
/// is a valid `T`.
pub(super) unsafe fn with_argument<T>(
    file: &File,
    request: libc::Ioctl,
    argument: &mut T,
) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open as long as `file` lives, the pointer is valid and exclusive for the call, and the caller vouches
    // for the size.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An `ioctl` whose argument is a number, or that has none (0).
///
/// # Safety
/// The kernel takes the argument of this request as a number, not as an address.
pub(super) unsafe fn with_number(
    file: &File,
    request: libc::Ioctl,
    number: libc::c_ulong,
) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open as long as `file` lives; the caller vouches that no memory is touched.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, number) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An `ioctl` whose argument points to bytes of a length that the request itself tells the kernel.
///
/// # Safety
/// The kernel writes at most `bytes.len()` bytes for this request.
pub(super) unsafe fn with_bytes(
    file: &File,
    request: libc::Ioctl,
    bytes: &mut [u8],
) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open as long as `file` lives, the bytes are exclusive for the call, and the caller vouches for
    // the length.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, bytes.as_mut_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
