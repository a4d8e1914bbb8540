//! Images that are read: from a file, a device, or standard input.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::file_id::FileId;
use crate::image::{
    Decoder, End, Event, FOOTER, HEADER_FRAME_MAX, Header, ImageError, Outline, ParentImage, ParentRecord,
    header_of,
};
use crate::interrupt::Interrupt;
use crate::standard_stream;

/// Bytes per read: a frame or so.
const READ: usize = 1 << 20;

/// Milliseconds between two looks at the interrupt while nothing comes.
const INTERRUPT_CHECK: u16 = 100;

/// An image that is read: a file, a block device, or standard input.
#[derive(Debug)]
pub(crate) struct ImageSource {
    file: File,
    path: PathBuf,
    /// Standard input may be a file, but one that others have read from: it is only read on.
    is_stdin: bool,
}

impl ImageSource {
    /// Opens an image; `-` is standard input.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let is_stdin = path == Path::new("-");
        let (file, path) = if is_stdin {
            let path = PathBuf::from("standard input");
            (standard_stream::stdin(), path)
        } else {
            (File::open(path), path.into())
        };
        match file {
            Ok(file) => Ok(Self { file, path, is_stdin }),
            Err(error) => Err(Error::io("opening the image", &path, error)),
        }
    }

    /// Which file it is.
    pub(crate) fn id(&self) -> Result<FileId> {
        self.metadata().map(|metadata| FileId::of(&metadata))
    }

    fn metadata(&self) -> Result<Metadata> {
        self.file
            .metadata()
            .map_err(|error| Error::io("looking at the image", &self.path, error))
    }

    /// Whether it can be read at any place: a regular file that was named.
    pub(crate) fn is_seekable(&self) -> Result<bool> {
        self.metadata()
            .map(|metadata| metadata.is_file() && !self.is_stdin)
    }

    /// Decodes the whole image, from where the file stands.
    ///
    /// # Errors
    /// What `on_event` returns; [`crate::error::ErrorKind::ImageBad`], `ImageUnsupported`, `Interrupted` or `Io`.
    pub(crate) fn decode(
        &mut self,
        interrupt: &Interrupt,
        on_event: impl FnMut(Event) -> Result<()>,
    ) -> Result<End> {
        self.decode_over(None, interrupt, on_event)
    }

    /// The same for an image that continues another.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub(crate) fn decode_over(
        &mut self,
        parent: Option<Box<dyn ParentImage>>,
        interrupt: &Interrupt,
        mut on_event: impl FnMut(Event) -> Result<()>,
    ) -> Result<End> {
        let mut decoder = Decoder::new().with_parent(parent);
        let mut buffer = vec![0; READ];
        loop {
            while let Some(event) = decoder.next_event().map_err(|error| self.bad(error))? {
                on_event(event)?;
            }
            self.wait_for_bytes(interrupt)?;
            match self.file.read(&mut buffer) {
                Ok(0) => return decoder.finish().map_err(|error| self.bad(error)),
                Ok(length) => decoder.push(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("reading the image", &self.path, error)),
            }
        }
    }

    /// Waits until a read would return, and looks at the interrupt meanwhile: who writes to a pipe may take for ever.
    fn wait_for_bytes(&self, interrupt: &Interrupt) -> Result<()> {
        loop {
            interrupt.check()?;
            match poll(
                &mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)],
                INTERRUPT_CHECK,
            ) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Error::io("waiting for the image", &self.path, error.into())),
            }
        }
    }

    /// What a seekable image continues, if it is an incremental one; `None` too where it is no image at all.
    pub(crate) fn parent(&self) -> Result<Option<ParentRecord>> {
        let length = self.metadata()?.len();
        let first = self.read_at(0, length.min(HEADER_FRAME_MAX as u64))?;
        Ok(header_of(&first).and_then(|header| header.parent))
    }

    /// Header and END of a seekable image, and whether everything that they speak of is as long as they say; its data are
    /// not read.
    pub(crate) fn outline(&self) -> Result<(Header, End)> {
        let length = self.metadata()?.len();
        let first = self.read_at(0, length.min(HEADER_FRAME_MAX as u64))?;
        let last = length.saturating_sub(FOOTER as u64);
        let last = self.read_at(last, length - last)?;
        let outline = Outline::new(length, &first, &last).map_err(|error| self.bad(error))?;
        let range = outline.end_range();
        let (end, mut check) = outline
            .end(&self.read_at(range.start, range.end - range.start)?)
            .map_err(|error| self.bad(error))?;
        let entries = outline.entries_range();
        let mut at = entries.start;
        while at < entries.end {
            let bytes = self.read_at(at, (entries.end - at).min(READ as u64))?;
            check.push(&bytes);
            at += bytes.len() as u64;
        }
        check.finish().map_err(|error| self.bad(error))?;
        Ok((outline.header().clone(), end))
    }

    fn read_at(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).expect("pieces of an image fit the memory");
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.bad(ImageError::Truncated { at })
            } else {
                Error::io("reading the image", &self.path, error)
            }
        })?;
        Ok(bytes)
    }

    fn bad(&self, error: ImageError) -> Error {
        Error::from(error).at_path(&self.path)
    }
}
