//! A file or block device that is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek};
use volmap::range::ByteRange;
use volmap::sys::block_device;

use super::mapped_reader::{RandomAccess, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::nbd::BufferPool;

/// Longest read.
const LONGEST: u64 = 32 << 20;

/// A file or block device as a source.
pub(crate) struct FileSource {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    id: FileId,
    buffers: BufferPool,
}

impl FileSource {
    /// Opens a source.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; [`ErrorKind::Usage`] where it can only be read as a stream.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("opening the source", path, error);
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = "the source is neither a file nor a block device; a stream is read with `-`";
            return Err(Error::new(ErrorKind::Usage, message).at_path(path));
        }
        let file = File::open(path).map_err(failed)?;
        Ok(Self {
            size: block_device::size(&file).map_err(failed)?,
            id: FileId::of(&file.metadata().map_err(failed)?),
            file: Arc::new(file),
            path: path.into(),
            buffers: BufferPool::default(),
        })
    }

    /// Which file it is.
    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    async fn blocking<T: Send + 'static>(
        &self,
        range: ByteRange,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = Arc::clone(&self.file);
        let result = tokio::task::spawn_blocking(move || work(&file)).await;
        result
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            .map_err(|error| Error::io("reading the source", &self.path, error).in_range(range))
    }
}

/// A file that became shorter since it was opened has no zeroes in the place of what is gone.
fn check_reach(file: &File, end: u64) -> io::Result<()> {
    let size = block_device::size(file)?;
    if size < end {
        let message = format!("it has only {size} bytes now: it became shorter while it was read");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    Ok(())
}

/// The first run of a range, by what the file system knows.
fn first_runs(file: &File, range: ByteRange) -> io::Result<Vec<Run>> {
    let data = |length| Run {
        length,
        is_zero: false,
    };
    let seek = |whence| -> io::Result<std::result::Result<u64, Errno>> {
        let at = libc::off_t::try_from(range.start()).map_err(io::Error::other)?;
        Ok(lseek(file, at, whence).map(|offset| u64::try_from(offset).unwrap_or_default()))
    };
    let to_data = match seek(Whence::SeekData)? {
        Ok(found) => found.min(range.end()),
        // Nothing but a hole up to the end, which may lie before the range.
        Err(Errno::ENXIO) => range.end(),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ESPIPE) => {
            return Ok(vec![data(range.len())]);
        }
        Err(error) => return Err(error.into()),
    };
    if to_data > range.start() {
        check_reach(file, to_data)?;
        return Ok(vec![Run {
            length: to_data - range.start(),
            is_zero: true,
        }]);
    }
    let to_hole = seek(Whence::SeekHole)??.min(range.end());
    // A file that is being changed may say anything: then it is read.
    let length = if to_hole > range.start() {
        to_hole - range.start()
    } else {
        range.len()
    };
    Ok(vec![data(length)])
}

impl RandomAccess for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        1
    }

    fn longest(&self) -> u64 {
        LONGEST
    }

    fn runs(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Run>>> {
        Box::pin(self.blocking(range, move |file| first_runs(file, range)))
    }

    fn read(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async move {
            let length = usize::try_from(range.len()).unwrap_or(usize::MAX);
            let buffers = self.buffers.clone();
            self.blocking(range, move |file| {
                let mut buffer = buffers.take(length);
                file.read_exact_at(buffer.bytes_mut(), range.start())?;
                Ok(buffer.freeze())
            })
            .await
        })
    }

    fn check_end(&self) -> BoxFuture<'_, Result<()>> {
        let Some(whole) = ByteRange::new(0, self.size) else {
            return Box::pin(ready(Ok(())));
        };
        Box::pin(self.blocking(whole, move |file| check_reach(file, whole.end())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::MappedReader;
    use crate::copy::reader::{Content, Reader};

    const MIB: u64 = 1 << 20;

    /// A file of a hole of 4 MiB and 1 MiB of data, and one to change it by.
    fn source(directory: &Path) -> (FileSource, File) {
        let path = directory.join("source");
        let file = File::create(&path).unwrap();
        file.set_len(5 * MIB).unwrap();
        file.write_all_at(&[7; 1 << 20], 4 * MIB).unwrap();
        (FileSource::open(&path).unwrap(), file)
    }

    fn assert_cut<T>(result: Result<T>) {
        let error = result.err().expect("the file became shorter");
        assert!(error.to_string().contains("became shorter"), "{error}");
    }

    #[tokio::test]
    async fn what_was_cut_off_is_no_hole() {
        let directory = tempfile::tempdir().unwrap();
        let (source, file) = source(directory.path());
        let at = |start, length| ByteRange::new(start, length).unwrap();
        assert!(source.runs(at(0, 4 * MIB)).await.unwrap()[0].is_zero);
        file.set_len(2 * MIB).unwrap();
        assert!(source.runs(at(0, 2 * MIB)).await.unwrap()[0].is_zero);
        assert_cut(source.runs(at(0, 4 * MIB)).await);
        assert_cut(source.runs(at(3 * MIB, MIB)).await);
        assert_cut(source.runs(at(4 * MIB, MIB)).await);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_behind_the_reader_has_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let (source, file) = source(directory.path());
        let mut reader = MappedReader::new(source, MIB);
        let mut given = 0;
        while given < 5 * MIB {
            let piece = reader.next().await.unwrap().unwrap();
            given += piece.range.len();
            if let Content::Later(bytes) = piece.content {
                bytes.await.unwrap();
            }
        }
        file.set_len(5 * MIB - 1).unwrap();
        assert_cut(reader.next().await);
    }
}
