//! One LUN, opened for direct reads.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use volmap::identity::Identity;
use volmap::range::ByteRange;
use volmap::storage::{ALIGNMENT, AlignedBuffer};
use volmap::sys::block_device;

/// The narrow interface to a LUN; test harnesses wrap it to let a writer in at a chosen point.
pub trait LunReader: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// What offsets and lengths of reads must be multiples of, a power of two.
    fn block_size(&self) -> u64;

    /// Reads into `buf`, whose length and `offset` are multiples of the block size. Short only at the end of the LUN.
    ///
    /// # Errors
    /// What the system says of the read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads `blocks`, which are whole blocks, while the caller goes on: the buffer, and how much of it is filled. A disk is waited
    /// for on a thread; a reader that has nothing to wait for does it its own way.
    fn read_meanwhile(self: Arc<Self>, blocks: ByteRange) -> ReadMeanwhile
    where
        Self: 'static,
    {
        Box::pin(async move {
            let read = move || {
                let mut buffer = AlignedBuffer::zeroed(memory_len(blocks.len())?);
                let filled = self.read_at(blocks.start(), &mut buffer)?;
                Ok((buffer, filled))
            };
            tokio::task::spawn_blocking(read)
                .await
                .map_err(io::Error::other)?
        })
    }
}

/// A read under way.
pub type ReadMeanwhile = Pin<Box<dyn Future<Output = io::Result<(AlignedBuffer, usize)>> + Send>>;

fn memory_len(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the range does not fit the address space",
        )
    })
}

/// Opens LUNs; the job's only way to one.
pub trait LunOpener: Send + Sync {
    /// The LUN at `path`, for direct reads.
    ///
    /// # Errors
    /// It cannot be opened, or refuses O_DIRECT.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>>;
}

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
    file: Flock<File>,
    size: u64,
    block_size: u64,
    /// We set the device read-only, for as long as it is read.
    was_writable: bool,
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
            was_writable: false,
        };
        if metadata.file_type().is_block_device() {
            lun.block_size = u64::from(block_device::logical_block_size(&lun.file)?);
            lun.was_writable = guard_against_writes(path, &lun.file);
        }
        Ok(lun)
    }
}

/// Sets the device read-only in this kernel (BLKROSET), unless somebody here holds it: a mounted file system, LVM or md would
/// see its writes fail. Tells whether it was writable before, and has to be made so again.
fn guard_against_writes(path: &Path, file: &File) -> bool {
    let unclaimed = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(path)
        .is_ok();
    if !unclaimed {
        tracing::warn!(lun = %path.display(), "the LUN is in use on this machine (mounted, LVM, md?); it is left writable");
        return false;
    }
    let guarded = match block_device::is_read_only(file) {
        Ok(false) => block_device::set_read_only(file, true).map(|()| true),
        other => other.map(|_| false),
    };
    guarded.unwrap_or_else(|error| {
        tracing::debug!(lun = %path.display(), %error, "the LUN could not be set read-only");
        false
    })
}

impl Drop for DirectLun {
    fn drop(&mut self) {
        if self.was_writable
            && let Err(error) = block_device::set_read_only(&self.file, false)
        {
            tracing::warn!(%error, "the LUN stays read-only; blockdev --setrw changes that");
        }
    }
}

impl LunReader for DirectLun {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u64 {
        self.block_size
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

/// A LUN of the job: what it is called, and how it is read.
pub struct Lun {
    /// The name under which the host maps to it.
    pub identity: Identity,
    /// Where the operator said it is.
    pub path: PathBuf,
    reader: Arc<dyn LunReader>,
}

/// The bytes that were asked for, inside the blocks that were read.
#[derive(Debug)]
pub struct LunBytes {
    blocks: AlignedBuffer,
    wanted: Range<usize>,
}

impl LunBytes {
    /// The bytes that were asked for.
    pub fn bytes(&self) -> &[u8] {
        &self.blocks[self.wanted.clone()]
    }
}

impl Lun {
    /// A LUN behind a reader.
    pub fn new(identity: Identity, path: PathBuf, reader: Box<dyn LunReader>) -> Self {
        Self {
            identity,
            path,
            reader: reader.into(),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// Reads `range`, rounded outward to whole blocks; neighbours of the range never leave the buffer.
    ///
    /// # Errors
    /// The range passes the end of the LUN ([`io::ErrorKind::UnexpectedEof`]), or the read failed.
    pub async fn read(&self, range: ByteRange) -> io::Result<LunBytes> {
        let past_end = || {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the range passes the end of the LUN",
            )
        };
        if range.end() > self.reader.size() {
            return Err(past_end());
        }
        let blocks = range
            .align_outward(self.reader.block_size())
            .ok_or_else(past_end)?;
        let skip = memory_len(range.start() - blocks.start())?;
        let wanted = skip..skip + memory_len(range.len())?;
        let (buffer, filled) = Arc::clone(&self.reader).read_meanwhile(blocks).await?;
        if wanted.end > filled {
            return Err(past_end());
        }
        Ok(LunBytes {
            blocks: buffer,
            wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl LunReader for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn block_size(&self) -> u64 {
            512
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512));
            let rest = &self.0[usize::try_from(offset).unwrap()..];
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }
    }

    fn lun(len: usize) -> Lun {
        let bytes = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Lun::new(
            Identity::from_operator("l").unwrap(),
            "l".into(),
            Box::new(Memory(bytes)),
        )
    }

    #[tokio::test]
    async fn any_range_is_read_in_whole_blocks() {
        let lun = lun(5 * 512 + 100);
        for (start, end) in [
            (0, 1),
            (511, 513),
            (512, 1024),
            (2000, 2560),
            (2559, 2660),
            (0, 2660),
        ] {
            let read = lun
                .read(ByteRange::from_bounds(start, end).unwrap())
                .await
                .unwrap();
            let expected: Vec<u8> = (start..end).map(|i| u8::try_from(i % 251).unwrap()).collect();
            assert_eq!(read.bytes(), expected);
        }
    }

    #[tokio::test]
    async fn a_range_past_the_end_is_refused() {
        let lun = lun(1000);
        let read = |start, end| lun.read(ByteRange::from_bounds(start, end).unwrap());
        assert!(read(0, 1000).await.is_ok());
        let error = read(999, 1001).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
