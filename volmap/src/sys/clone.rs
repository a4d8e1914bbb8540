//! FICLONE: a second file that shares the blocks of the first.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use super::ioctl;

const FICLONE: libc::Ioctl = 0x4004_9409;

/// Makes `target`, open for writing, share all blocks of `source`. The source is flushed first, so the clone has no dirty pages.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY`: the file system cannot. `EXDEV`: not the same file system.
pub fn clone_file(source: &File, target: &File) -> io::Result<()> {
    let source = libc::c_ulong::try_from(source.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: FICLONE takes a descriptor number, which stays open for the call.
    unsafe { ioctl::with_number(target, FICLONE, source) }.map(drop)
}
