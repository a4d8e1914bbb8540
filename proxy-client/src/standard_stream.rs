//! Standard input and output as files.
//!
//! A program that is started with one of them closed gets `/dev/null` in its place before `main`: an image that was written there would
//! be lost, and an empty source would be read, both without an error. The stand-in is open for reading and writing, as no redirection
//! of a shell is.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use volmap::sys::DeviceNumber;

/// The number of `/dev/null`.
const NULL: DeviceNumber = DeviceNumber { major: 1, minor: 3 };

/// Standard input, unbuffered.
///
/// # Errors
/// It is closed.
pub(crate) fn stdin() -> io::Result<File> {
    own(io::stdin())
}

/// Standard output, unbuffered.
///
/// # Errors
/// It is closed.
pub(crate) fn stdout() -> io::Result<File> {
    own(io::stdout())
}

fn own(stream: impl AsFd) -> io::Result<File> {
    let file = File::from(stream.as_fd().try_clone_to_owned()?);
    let metadata = file.metadata()?;
    let is_null = metadata.file_type().is_char_device() && DeviceNumber::from_stat(metadata.rdev()) == NULL;
    if is_null {
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        if flags & OFlag::O_ACCMODE == OFlag::O_RDWR {
            let message = "it is closed, or /dev/null open for reading and writing, which looks the same";
            return Err(io::Error::other(message));
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_for_a_closed_stream_is_refused() {
        let null = |read, write| File::options().read(read).write(write).open("/dev/null").unwrap();
        own(null(true, false)).unwrap();
        own(null(false, true)).unwrap();
        own(null(true, true)).unwrap_err();
        own(File::options().read(true).write(true).open("/dev/zero").unwrap()).unwrap();
    }
}
