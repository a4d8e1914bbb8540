//! Real LUNs: block devices, and files that stand for disks, opened with O_DIRECT.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use volmap::storage::ALIGNMENT;
use volmap::sys::block_device;

use super::reader::{Geometry, LunOpener, LunReader};
use super::write_guard::{WriteGuard, guard_against_writes};

/// Opens real LUNs: block devices, and files that stand for disks.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectOpener;

impl LunOpener for DirectOpener {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>> {
        Ok(Box::new(DirectLun::open(path)?))
    }
}

/// A LUN read with O_DIRECT. The shared lock tells a restore on this machine that the LUN is being read.
struct DirectLun {
    /// Before the lock: whoever gets that finds the device as it was. The device was set read-only, for as long as somebody here reads it.
    guard: Option<WriteGuard>,
    file: Flock<File>,
    size: u64,
    block_size: u64,
    is_device: bool,
}

impl DirectLun {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECT)
            .open(path)?;
        let metadata = file.metadata()?;
        let size = block_device::size(&file)?;
        let file =
            Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| io::Error::from(errno))?;
        let mut lun = Self {
            file,
            size,
            // A file system's own rule; a page satisfies every one.
            block_size: ALIGNMENT as u64,
            is_device: metadata.file_type().is_block_device(),
            guard: None,
        };
        if lun.is_device {
            lun.block_size = u64::from(block_device::logical_block_size(&lun.file)?);
            lun.guard = guard_against_writes(path, &lun.file, metadata.rdev());
        }
        Ok(lun)
    }
}

impl LunReader for DirectLun {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn geometry(&self) -> Option<Geometry> {
        Some(Geometry {
            size: self.size,
            block_size: self.is_device.then_some(self.block_size),
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // Only the end of a file leaves a read unaligned, and behind it nothing can be read directly.
            if !(filled as u64).is_multiple_of(self.block_size) {
                break;
            }
        }
        Ok(filled)
    }
}

/// What refuses O_DIRECT: every read of it fails, and the failure is the reason in the report.
#[derive(Clone, Copy, Debug)]
pub struct NoDirectIo;

impl LunReader for NoDirectIo {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn block_size(&self) -> u64 {
        1
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "it refuses O_DIRECT"))
    }
}
