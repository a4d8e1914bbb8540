//! What an image is written to.

use std::fs::File;
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::partial_file::{PartialFile, Remover};
use crate::error::{Error, ErrorKind, Result};
use crate::standard_stream;

/// Something that an image is written to, front to back.
pub trait Output: Send {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// The system's, once; [`ErrorKind::OutputPoisoned`] ever after.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Whether an image that was left unfinished here can be resumed. Streams and devices cannot be.
    fn is_resumable(&self) -> bool {
        false
    }

    /// What removes the image while another thread writes it; `None` where it cannot be removed.
    ///
    /// # Errors
    /// The system's.
    fn remover(&self) -> Result<Option<Remover>> {
        Ok(None)
    }

    /// Makes durable what was written so far, and what is written next is the checkpoint that says so; an unfinished image is kept from now on.
    ///
    /// # Errors
    /// The system's: what was written may be lost, and nothing more is written.
    fn make_durable(&mut self) -> Result<()>;

    /// After the last byte: makes the image durable and, if it is a file, gives it its name.
    ///
    /// # Errors
    /// The image is not safe.
    fn commit(self: Box<Self>) -> Result<()>;
}

/// A writer that writes nothing behind a failed write.
#[derive(Debug)]
struct Sticky<W> {
    inner: W,
    path: PathBuf,
    poisoned: bool,
}

impl<W: Write> Sticky<W> {
    fn new(inner: W, path: &Path) -> Self {
        Self {
            inner,
            path: path.into(),
            poisoned: false,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sound()?;
        self.inner.write_all(bytes).map_err(|error| {
            self.poisoned = true;
            Error::io("writing the image", &self.path, error)
        })
    }

    /// A sync that failed once may succeed the next time, though the kernel has thrown the bytes away.
    fn synced(&mut self, result: io::Result<()>) -> Result<()> {
        result.map_err(|error| {
            self.poisoned = true;
            Error::io("making the image durable", &self.path, error)
        })
    }

    fn sound(&self) -> Result<()> {
        if self.poisoned {
            Err(Error::new(ErrorKind::OutputPoisoned, "an earlier write failed").at_path(&self.path))
        } else {
            Ok(())
        }
    }
}

/// An image file, written as `FILE.partial`; removed again if it is neither committed nor made durable on the way.
#[derive(Debug)]
pub struct FileOutput {
    writer: Sticky<File>,
    partial: PartialFile,
    /// Bytes written.
    length: u64,
    /// Where the last checkpoint ends.
    checkpointed: u64,
    /// What is written next is a checkpoint.
    is_durable: bool,
}

impl FileOutput {
    /// A new image file.
    ///
    /// # Errors
    /// [`ErrorKind::OutputExists`]: a file of this name, or a `.partial` file with a living writer. [`ErrorKind::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let partial = PartialFile::create(path)?;
        let file = partial
            .file()
            .try_clone()
            .map_err(|error| Error::io("creating the output", path, error))?;
        Ok(Self {
            writer: Sticky::new(file, partial.partial_path()),
            partial,
            length: 0,
            checkpointed: 0,
            is_durable: false,
        })
    }

    /// An unfinished image that is written on from byte `at`, first of all its last checkpoint; what follows there is cut off.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn resume(mut partial: PartialFile, at: u64) -> Result<Self> {
        partial.keep_unfinished();
        let failed = |error| Error::io("cutting the unfinished image", partial.partial_path(), error);
        let mut file = partial.file().try_clone().map_err(failed)?;
        file.set_len(at).map_err(failed)?;
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        Ok(Self {
            writer: Sticky::new(file, partial.partial_path()),
            partial,
            length: at,
            checkpointed: at,
            is_durable: true,
        })
    }

    /// Gives the image its name, or cuts it: in the page cache it looks whole, and its sync would succeed the next time.
    fn settle(self, synced: io::Result<()>) -> Result<()> {
        let Err(error) = synced else {
            return self.partial.give_name();
        };
        let error = Error::io("making the image durable", self.partial.partial_path(), error);
        match self.partial.cut(self.checkpointed) {
            Ok(()) => Err(error),
            Err(second) => {
                tracing::error!(error = %second, "do not rely on what is left of the image");
                Err(error)
            }
        }
    }

    /// The open file, to find out which file system and disk it lies on.
    pub fn file(&self) -> &File {
        self.partial.file()
    }
}

impl Output for FileOutput {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)?;
        self.length += bytes.len() as u64;
        if std::mem::take(&mut self.is_durable) {
            self.checkpointed = self.length;
        }
        Ok(())
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn remover(&self) -> Result<Option<Remover>> {
        self.partial.remover().map(Some)
    }

    fn make_durable(&mut self) -> Result<()> {
        self.writer.sound()?;
        let synced = self.writer.inner.sync_data();
        self.writer.synced(synced)?;
        self.partial.make_name_durable()?;
        self.is_durable = true;
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<()> {
        self.writer.sound()?;
        let synced = self.partial.file().sync_all();
        self.settle(synced)
    }
}

/// Standard output.
#[derive(Debug)]
pub struct StdoutOutput(Sticky<File>);

impl StdoutOutput {
    /// Standard output, unbuffered.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: it is a terminal. [`ErrorKind::Io`]: it is closed.
    pub fn new() -> Result<Self> {
        let path = Path::new("standard output");
        if io::stdout().is_terminal() {
            return Err(Error::new(
                ErrorKind::Usage,
                "an image is not written to a terminal: name a file or redirect",
            )
            .at_path(path));
        }
        let file = standard_stream::stdout().map_err(|error| Error::io("opening the output", path, error))?;
        Ok(Self(Sticky::new(file, path)))
    }
}

impl Output for StdoutOutput {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes)
    }

    fn make_durable(&mut self) -> Result<()> {
        Err(Error::new(ErrorKind::Usage, "a stream cannot be resumed").at_path(&self.0.path))
    }

    fn commit(self: Box<Self>) -> Result<()> {
        self.0.sound()?;
        match self.0.inner.sync_all() {
            Ok(()) => Ok(()),
            // A pipe or a socket has nothing to sync: the reader is responsible from here on.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Err(error) => Err(Error::io("making the output durable", &self.0.path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails from the second write on, once: a third write would pass.
    struct FailsOnce(usize);

    impl Write for FailsOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 == 2 {
                Err(io::Error::from_raw_os_error(28))
            } else {
                Ok(bytes.len())
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_is_written_behind_a_failed_write() {
        let mut writer = Sticky::new(FailsOnce(0), Path::new("x"));
        writer.write(b"a").unwrap();
        assert_eq!(writer.write(b"b").unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(writer.write(b"c").unwrap_err().kind(), ErrorKind::OutputPoisoned);
        assert_eq!(writer.sound().unwrap_err().kind(), ErrorKind::OutputPoisoned);
        assert_eq!(writer.inner.0, 2);
    }

    #[test]
    fn a_file_output_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut output = Box::new(FileOutput::create(&path).unwrap());
        output.write(b"one").unwrap();
        output.write(b"two").unwrap();
        assert!(!path.exists());
        output.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"onetwo");
    }

    fn lost() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }

    /// What the last sync could not write is still in the page cache, and the next sync succeeds.
    #[test]
    fn an_image_whose_last_sync_failed_ends_with_its_last_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let partial = dir.path().join("image.partial");
        let mut output = FileOutput::create(&path).unwrap();
        output.write(b"header, group").unwrap();
        output.make_durable().unwrap();
        output.write(b", checkpoint").unwrap();
        output.write(b", group, END").unwrap();
        assert_eq!(output.settle(lost()).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(std::fs::read(&partial).unwrap(), b"header, group, checkpoint");

        // The same when it was resumed.
        let reopened = PartialFile::reopen(&path).unwrap();
        let mut output = FileOutput::resume(reopened, 13).unwrap();
        output.write(b", checkpoint again").unwrap();
        output.write(b", END").unwrap();
        output.settle(lost()).unwrap_err();
        assert_eq!(
            std::fs::read(&partial).unwrap(),
            b"header, group, checkpoint again"
        );
        assert!(!path.exists());
    }

    #[test]
    fn an_image_without_checkpoints_whose_sync_failed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = FileOutput::create(&dir.path().join("image")).unwrap();
        output.write(b"all of it").unwrap();
        output.settle(lost()).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
