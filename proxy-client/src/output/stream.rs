//! What an image is written to.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::partial_file::PartialFile;
use crate::error::{Error, ErrorKind, Result};
use crate::standard_stream;

/// Something that an image is written to, front to back.
pub trait Output: Send {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// The system's, once; [`ErrorKind::OutputPoisoned`] ever after.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

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

    fn sound(&self) -> Result<()> {
        if self.poisoned {
            Err(Error::new(ErrorKind::OutputPoisoned, "an earlier write failed").at_path(&self.path))
        } else {
            Ok(())
        }
    }
}

/// An image file, written as `FILE.partial`; removed again if it is not committed.
#[derive(Debug)]
pub struct FileOutput {
    writer: Sticky<File>,
    partial: PartialFile,
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
        })
    }

    /// The open file, to find out which file system and disk it lies on.
    pub fn file(&self) -> &File {
        self.partial.file()
    }
}

impl Output for FileOutput {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)
    }

    fn commit(self: Box<Self>) -> Result<()> {
        self.writer.sound()?;
        self.partial.commit()
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
}
