//! What a process got from whoever started it: open descriptors, and variables that were meant for it alone.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::libc;

/// The standard streams belong to the standard library.
const FIRST: RawFd = 3;

/// Descriptors that were taken: each has one owner.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes a descriptor that was open when the process began, and keeps it from programs that this one starts. To be called before
/// the process opens anything of its own, which could otherwise have that number.
///
/// # Errors
/// `InvalidInput`: one of the standard streams, or taken before. `EBADF`: nothing was passed under this number.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if number < FIRST || taken.contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the command touches no memory, and of a number that is not open it says so.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody in this process owns it: it was passed by whoever started us, and the set above lets
    // each number through once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    taken.insert(number);
    // SAFETY: the descriptor is open as long as `descriptor` lives; the command takes an int.
    if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(descriptor)
}

/// Takes variables that a program started by this one must not see, where no other thread could be reading the environment;
/// where one could, they are only read.
pub fn take_variables<const N: usize>(names: [&str; N]) -> [Option<OsString>; N] {
    let alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    names.map(|name| {
        let value = env::var_os(name);
        if alone && value.is_some() {
            // SAFETY: this is the only thread.
            unsafe { env::remove_var(name) };
        }
        value
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_has_one_owner() {
        for standard in -1..FIRST {
            assert_eq!(take(standard).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(take(4711).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let number = tempfile::tempfile().unwrap().into_raw_fd();
        let mut file = File::from(take(number).unwrap());
        file.write_all(b"x").unwrap();
        assert_eq!(take(number).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
