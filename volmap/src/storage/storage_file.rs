//! A file or block device that is ours alone, as storage.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use crate::layers::{Layers, VolumeKind};
use crate::storage::aligned::{ALIGNMENT, AlignedBuffer, is_aligned};
use crate::storage::backing::Backing;
use crate::storage::error::{StorageError, at};
use crate::storage::standing::Standing;
use crate::sys::lease::Held;
use crate::sys::{block_device, file_system, lease};

/// Zeroes that are written in one go: enough for the bandwidth of a disk.
const ZEROES_MAX: usize = 1024 * 1024;

/// Who sees to it that nobody else changes a file or device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Guard {
    /// The kernel: a write lease.
    Lease,
    /// The operator. The kernel keeps mounts, LVM and md away from a block device opened `O_EXCL`, but not a plain
    /// writer; and a file that is declared a disk is there for others to read.
    Promise,
    /// Nobody, for the reason given: no location may be given.
    Nobody(String),
}

/// Whether reads and writes go past the page cache, where the file system lets them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caching {
    PageCache,
    Direct,
}

/// The one open file on a file or block device. A write lease wants it to be the only one, so nothing opens the path a
/// second time.
pub(crate) struct StorageFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) kind: VolumeKind,
    pub(crate) guard: Guard,
    size: u64,
    caching: Caching,
}

/// The byte whose lock says that one of us writes to a file. It lies behind any data: no other program locks it, and none is hindered
/// by it. Not `flock`, by which proxies share a LUN.
const OURS: i64 = i64::MAX - 1;

/// Locks [`OURS`] for as long as the file is open, against other descriptors of this process too.
fn lock_as_ours(file: &File) -> nix::Result<()> {
    let byte = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: OURS,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte)).map(drop)
}

impl StorageFile {
    /// Opens what is there.
    pub(crate) fn open(path: &Path, caching: Caching, layers: &Layers) -> Result<Self, StorageError> {
        let is_file = path.metadata().map_err(at(path, "looking it up"))?.is_file();
        // Of a block device, O_EXCL without O_CREAT is a claim: mounts, LVM and md stay away.
        let flags = if is_file { OFlag::empty() } else { OFlag::O_EXCL };
        Self::with_options(path, caching, layers, OpenOptions::new(), flags)
    }

    /// Creates an empty file that only its owner can read.
    pub(crate) fn create(path: &Path, caching: Caching, layers: &Layers) -> Result<Self, StorageError> {
        let mut options = OpenOptions::new();
        options.create_new(true).mode(0o600);
        match Self::with_options(path, caching, layers, options, OFlag::empty()) {
            // The file system made the file and then said that it cannot do without its page cache.
            Err(StorageError::At { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                Self::open(path, Caching::PageCache, layers)
            }
            other => other,
        }
    }

    fn with_options(
        path: &Path,
        mut caching: Caching,
        layers: &Layers,
        mut options: OpenOptions,
        flags: OFlag,
    ) -> Result<Self, StorageError> {
        // O_NONBLOCK: not to wait until somebody else gives up a lease.
        let mut open = |more: OFlag| {
            let flags = flags | more | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            options
                .read(true)
                .write(true)
                .custom_flags(flags.bits())
                .open(path)
        };
        let mut opened = match caching {
            Caching::Direct => open(OFlag::O_DIRECT),
            Caching::PageCache => open(OFlag::empty()),
        };
        if caching == Caching::Direct
            && opened
                .as_ref()
                .is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput)
        {
            caching = Caching::PageCache;
            opened = open(OFlag::empty());
        }
        let in_use = |reason| StorageError::InUse {
            path: path.into(),
            reason,
        };
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => in_use(error),
            _ => at(path, "opening it for reading and writing")(error),
        })?;
        let kind = layers
            .kind(&file)
            .map_err(|_| StorageError::NotAVolume { path: path.into() })?;
        // No lease can be kept on a declared disk, and not everywhere on a file: this lock keeps at least our own kind away, in this
        // process and in others. Two origins on one disk would overwrite what the frozen image of the other shows.
        if kind != VolumeKind::BlockDevice {
            match lock_as_ours(&file) {
                Err(errno @ (Errno::EAGAIN | Errno::EACCES)) => return Err(in_use(errno.into())),
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "a file system without locks");
                }
                Ok(()) => {}
            }
        }
        let guard = match kind {
            VolumeKind::BlockDevice | VolumeKind::DeclaredDisk => Guard::Promise,
            VolumeKind::File => match lease::take_write(&file) {
                Ok(()) => Guard::Lease,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(in_use(error)),
                // Not the owner, or a file system that knows no leases.
                Err(error) => Guard::Nobody(format!("no lease can be taken on {}: {error}", path.display())),
            },
        };
        if let Guard::Nobody(reason) = &guard {
            tracing::warn!(reason, "nothing of it can be read directly");
        }
        let size = block_device::size(&file).map_err(at(path, "asking for its size"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            kind,
            guard,
            size,
            caching,
        })
    }

    /// Changes the size: of a file truly, of a block device how much of it is used.
    pub(crate) fn resize(&mut self, size: u64) -> io::Result<()> {
        if self.kind != VolumeKind::BlockDevice {
            self.file.set_len(size)?;
        }
        self.size = size;
        Ok(())
    }

    /// What the guard says now: good, a reader came, a writer came.
    pub(crate) fn standing(&self) -> Standing {
        if self.guard != Guard::Lease {
            return Standing::Good;
        }
        let path = self.path.display();
        match lease::held(&self.file) {
            Ok(Held::Write) => Standing::Good,
            Ok(Held::Read) => Standing::MappingLost(format!("{path} was opened by somebody else")),
            Ok(Held::None) => {
                Standing::ContentLost(format!("{path} was opened for writing by somebody else"))
            }
            Err(error) => Standing::ContentLost(format!("the lease on {path} cannot be asked for: {error}")),
        }
    }

    /// Takes the lease again, where somebody made us lose it and has gone since. Whoever waits for it comes first. Tells whether
    /// it was lost: then anything may have been done to the file.
    pub(crate) fn renew_guard(&self) -> Result<bool, StorageError> {
        if self.standing() == Standing::Good {
            return Ok(false);
        }
        // A break that is pending stays so until the lease is given up.
        lease::release(&self.file)
            .and_then(|()| lease::take_write(&self.file))
            .map(|()| true)
            .map_err(|reason| StorageError::InUse {
                path: self.path.clone(),
                reason,
            })
    }

    /// The smallest aligned range around a request, that `O_DIRECT` takes.
    fn read_around(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let before = usize::try_from(offset % ALIGNMENT as u64).map_err(io::Error::other)?;
        let whole = (before + buf.len()).next_multiple_of(ALIGNMENT);
        let mut aligned = AlignedBuffer::zeroed(whole);
        let start = offset - before as u64;
        // The end of the file may cut the last block.
        let mut filled = 0;
        while filled < before + buf.len() {
            match self.file.read_at(&mut aligned[filled..], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buf.copy_from_slice(&aligned[before..before + buf.len()]);
        Ok(())
    }
}

impl Backing for StorageFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.caching {
            Caching::Direct => self.read_around(offset, buf),
            Caching::PageCache => self.file.read_exact_at(buf, offset),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.caching == Caching::PageCache || is_aligned(offset, data) {
            return self.file.write_all_at(data, offset);
        }
        let mut aligned = AlignedBuffer::zeroed(data.len());
        aligned.copy_from_slice(data);
        // Offset and length are the caller's to align: the kernel says so where they are not.
        self.file.write_all_at(&aligned, offset)
    }

    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()> {
        file_system::punch_hole(&self.file, offset, len).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw) {
                // EINVAL: a device takes whole blocks only.
                Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                    io::Error::new(io::ErrorKind::Unsupported, error)
                }
                _ => error,
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_zeroes_at(&self, offset: u64, len: u64) -> io::Result<()> {
        let largest = usize::try_from(len).map_or(ZEROES_MAX, |len| len.min(ZEROES_MAX));
        let zeroes = AlignedBuffer::zeroed(largest);
        let mut written = 0;
        while written < len {
            let piece = usize::try_from(len - written).map_or(largest, |left| left.min(largest));
            self.write_at(offset + written, &zeroes[..piece])?;
            written += piece as u64;
        }
        Ok(())
    }

    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)?;
        match self.caching {
            Caching::Direct => Ok(()),
            Caching::PageCache => self.sync_data(),
        }
    }
}
