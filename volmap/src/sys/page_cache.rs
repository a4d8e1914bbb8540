//! What of a file is in the page cache, and reads that take only that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// `cachestat(2)`, the same number on every architecture; not in the libc crate on all of them.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of `include/uapi/linux/mman.h`.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

/// `struct cachestat` of `include/uapi/linux/mman.h`, all in pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Fills as much of `buf` from `offset` on as is there without waiting for the device: all of it, or a first part, or
/// nothing. At the end of the file less, too. (`preadv2(2)` with `RWF_NOWAIT`.)
///
/// # Errors
/// Of the system call. That nothing is there is not one; nor is it one that the file system cannot tell.
pub fn read_cached(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let vector = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: the descriptor is open as long as `file` lives, and the vector describes the whole of `buf`, which nobody else
    // touches during the call.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
    match usize::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::EINTR) => Ok(0),
                _ => Err(error),
            }
        }
    }
}

/// Takes the pages of a range out of the page cache that are clean and that nobody uses just then.
///
/// # Errors
/// Of `posix_fadvise(2)`.
pub fn drop_clean(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let number = |number: u64| libc::off_t::try_from(number).map_err(io::Error::other);
    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    Ok(posix_fadvise(file, number(offset)?, number(length)?, advice)?)
}

/// Bytes of the pages of a range, not empty, that are in the page cache. A moment later it may be more or less.
///
/// # Errors
/// `Unsupported` before Linux 6.5; others of `cachestat(2)`.
pub fn cached_bytes(file: &File, offset: u64, length: u64) -> io::Result<u64> {
    Ok(cachestat(file, offset, length)?.cached * page_size())
}

/// Whether every page of that range, not empty, is in the page cache. A moment later it may not be.
///
/// # Errors
/// `Unsupported` before Linux 6.5; others of `cachestat(2)`.
pub fn is_cached(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    let page = page_size();
    let pages = (offset + length).div_ceil(page) - offset / page;
    Ok(cachestat(file, offset, length)?.cached >= pages)
}

fn cachestat(file: &File, offset: u64, length: u64) -> io::Result<Cachestat> {
    let range = CachestatRange { offset, length };
    let mut found = Cachestat::default();
    // SAFETY: the descriptor is open as long as `file` lives; both structures have the layout of the kernel's, and it
    // writes only to the second.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut found,
            0_u32,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found)
}

fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_was_just_read_is_there_and_what_was_dropped_is_not() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        let mut buf = vec![0; 5000];
        file.read_exact_at(&mut buf, 4000).unwrap();
        assert_eq!(read_cached(&file, &mut buf, 4000).unwrap(), 5000);
        assert_eq!(buf, bytes[4000..9000]);
        // Past the end there is less, and behind it nothing.
        assert_eq!(read_cached(&file, &mut buf, (1 << 20) - 7).unwrap(), 7);
        assert_eq!(read_cached(&file, &mut buf, 1 << 21).unwrap(), 0);
        match is_cached(&file, 4000, 5000) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            cached => assert!(cached.unwrap()),
        }
        assert!(is_cached(&file, 0, 1 << 20).unwrap());
        assert!(!is_cached(&file, 0, (1 << 20) + 1).unwrap());

        // Not at every time: the kernel leaves pages that somebody holds just then, and a read that does not wait makes it fetch them,
        // which may be done before it is looked for them.
        let was_missed = (0..100).any(|_| {
            drop_clean(&file, 0, 1 << 20).unwrap();
            let dropped = !is_cached(&file, 0, 1 << 20).unwrap();
            match read_cached(&file, &mut buf, 500_000).unwrap() {
                0 => dropped,
                read => {
                    assert_eq!(buf[..read], bytes[500_000..500_000 + read]);
                    false
                }
            }
        });
        assert!(was_missed, "what was dropped was always there");
    }
}
