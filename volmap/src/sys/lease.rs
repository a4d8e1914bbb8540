//! fcntl leases: the kernel's word that nobody else opened a file.
//!
//! A read lease is refused while anyone has the file open for writing, and any later open for writing waits until the lease is given
//! up; a write lease does the same for every other open. From the moment such an opener waits, [`held`] no longer says what was taken:
//! that answer is the witness, signals are not needed for it. (Tried: docs/law.md, "Witnesses".)

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// `F_SETSIG` of the kernel's `include/uapi/asm-generic/fcntl.h`; not in the libc crate.
const F_SETSIG: libc::c_int = 10;

/// The lease that holds on a file, as far as one open file is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Nobody has the file open for writing.
    Read,
    /// Nobody else has the file open.
    Write,
    /// No lease, or one that is being broken.
    None,
}

/// Takes a read lease through a file opened read-only.
///
/// # Errors
/// `WouldBlock`: somebody has the file open for writing, or mapped writable and shared. `PermissionDenied`: neither the owner of the file
/// nor `CAP_LEASE`. `InvalidInput`: this file system knows no leases.
pub fn take_read(file: &File) -> io::Result<()> {
    take(file, libc::F_RDLCK)
}

/// Takes a write lease through the only open file on an inode.
///
/// # Errors
/// As [`take_read`]; `WouldBlock` means any other opener here.
pub fn take_write(file: &File) -> io::Result<()> {
    take(file, libc::F_WRLCK)
}

/// The lease that is held through this open file, with a pending break taken for what it will be broken to.
///
/// # Errors
/// Of `fcntl`; none is known for an open file.
pub fn held(file: &File) -> io::Result<Held> {
    match fcntl(file, libc::F_GETLEASE, 0)? {
        libc::F_RDLCK => Ok(Held::Read),
        libc::F_WRLCK => Ok(Held::Write),
        _ => Ok(Held::None),
    }
}

/// Gives the lease up; whoever waits for it goes on. Without a lease this does nothing.
///
/// # Errors
/// Of `fcntl`.
pub fn release(file: &File) -> io::Result<()> {
    match fcntl(file, libc::F_SETLEASE, libc::F_UNLCK) {
        // What Linux says when there is no lease to release.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other.map(drop),
    }
}

fn take(file: &File, kind: libc::c_int) -> io::Result<()> {
    // The default signal of a lease break, SIGIO, would end the process. SIGURG is ignored unless somebody asked for it.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    fcntl(file, libc::F_SETLEASE, kind).map(drop)
}

fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open as long as `file` lives, and the commands used here take an int and touch no memory.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_read_lease_is_refused_while_a_writer_is_there_and_broken_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(
            take_read(&reader).map_err(|e| e.kind()),
            Err(io::ErrorKind::WouldBlock)
        );
        drop(writer);
        take_read(&reader).unwrap();
        assert_eq!(held(&reader).unwrap(), Held::Read);
        File::open(&path).unwrap();
        assert_eq!(held(&reader).unwrap(), Held::Read);

        let refused = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        assert_eq!(
            refused.map(drop).map_err(|e| e.kind()),
            Err(io::ErrorKind::WouldBlock)
        );
        assert_eq!(held(&reader).unwrap(), Held::None);
        release(&reader).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap();
        release(&reader).unwrap();
    }

    #[test]
    fn a_write_lease_notices_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let only = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        take_write(&only).unwrap();
        assert_eq!(held(&only).unwrap(), Held::Write);
        let refused = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        assert!(refused.is_err());
        assert_eq!(held(&only).unwrap(), Held::Read);
        release(&only).unwrap();
    }
}
