//! The error values that may travel, and how those of the system map to them ("Error values").

use std::fmt;
use std::io;

/// An error value of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Errno {
    /// EPERM: writing to a read-only export.
    Perm,
    /// EIO.
    Io,
    /// ENOMEM.
    NoMem,
    /// EINVAL, and every value that the specification does not name.
    Inval,
    /// ENOSPC: full, or writing past the end.
    NoSpc,
    /// EOVERFLOW: too large to answer in one piece.
    Overflow,
    /// ENOTSUP: a fast zero would not be fast.
    NotSup,
    /// ESHUTDOWN: the export is going, or gone.
    Shutdown,
}

impl Errno {
    /// The value as it travels.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// A value as it travelled, not 0. "The client SHOULD treat an unexpected error value as if it had been
    /// NBD_EINVAL."
    pub const fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Perm => "EPERM",
            Self::Io => "EIO",
            Self::NoMem => "ENOMEM",
            Self::Inval => "EINVAL",
            Self::NoSpc => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSup => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        })
    }
}

/// What a failure of the system is called on the wire, or one that a layer of ours found before the system could. EOVERFLOW and
/// ENOTSUP are never derived: the specification keeps them for READ with DF and for fast zeroes.
impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        let Some(number) = error.raw_os_error() else {
            return match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Perm,
                io::ErrorKind::OutOfMemory => Self::NoMem,
                io::ErrorKind::InvalidInput => Self::Inval,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Self::NoSpc
                }
                _ => Self::Io,
            };
        };
        match number {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Self::Perm,
            // ENOMEM
            12 => Self::NoMem,
            // EINVAL
            22 => Self::Inval,
            // EFBIG, ENOSPC, EDQUOT
            27 | 28 | 122 => Self::NoSpc,
            // ESHUTDOWN
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_the_wire() {
        for value in [1, 5, 12, 22, 28, 75, 95, 108] {
            assert_eq!(Errno::from_wire(value).to_wire(), value);
        }
        assert_eq!(Errno::from_wire(99_999), Errno::Inval);
    }

    #[test]
    fn failures_of_the_system_have_a_name_on_the_wire() {
        let wire = |raw| Errno::from(&io::Error::from_raw_os_error(raw));
        assert_eq!(wire(122), Errno::NoSpc);
        assert_eq!(wire(30), Errno::Perm);
        assert_eq!(wire(95), Errno::Io);
        assert_eq!(Errno::from(&io::Error::other("x")), Errno::Io);
    }

    #[test]
    fn failures_that_we_find_ourselves_keep_their_reason() {
        let wire = |kind| Errno::from(&io::Error::new(kind, "a reason"));
        assert_eq!(wire(io::ErrorKind::PermissionDenied), Errno::Perm);
        assert_eq!(wire(io::ErrorKind::InvalidInput), Errno::Inval);
        assert_eq!(wire(io::ErrorKind::StorageFull), Errno::NoSpc);
        assert_eq!(wire(io::ErrorKind::UnexpectedEof), Errno::Io);
    }
}
