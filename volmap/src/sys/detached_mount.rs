//! A file system that is mounted nowhere: only who has its root open sees it, and with the last descriptor it is gone, however that ends.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// Read-only, and nothing in it is a device, a program, or one with the rights of its owner.
const MOUNT_ATTRIBUTES: libc::c_uint = 0x1 | 0x2 | 0x4 | 0x8;

/// The root of the file system on a block device, mounted read-only with some more options: flags, or keys with their values.
///
/// # Errors
/// Of `fsopen`, `fsconfig` and `fsmount`; `ENOSYS` before Linux 5.2.
pub fn read_only(device: &File, kind: &CStr, options: &[(&CStr, Option<&CStr>)]) -> io::Result<File> {
    // SAFETY: `kind` ends with a zero and lives for the call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    let context = descriptor(context)?;
    let source = CString::new(format!("/proc/self/fd/{}", device.as_raw_fd()))?;
    configure(&context, FSCONFIG_SET_STRING, Some(c"source"), Some(&source))?;
    for (key, value) in [&[(c"ro", None)], options].concat() {
        let command = value.map_or(FSCONFIG_SET_FLAG, |_| FSCONFIG_SET_STRING);
        configure(&context, command, Some(key), value)?;
    }
    configure(&context, FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: three numbers.
    let mount = unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            MOUNT_ATTRIBUTES,
        )
    };
    let mount = descriptor(mount)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?.into())
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both texts end with a zero and live for the call, or are null where the command has none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What a system call gave that makes a descriptor.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = libc::c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel made it for this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
