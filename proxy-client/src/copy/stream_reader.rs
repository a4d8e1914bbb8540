//! Standard input as a source.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use tokio::sync::mpsc;
use volmap::range::ByteRange;

use super::limits::{STREAM_PIECES, STREAM_READ};
use super::reader::{Content, Piece, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::BufferPool;
use crate::standard_stream;

/// Milliseconds between two looks at whether anybody still wants the stream.
const LOOK: u16 = 100;

/// A stream, read by a thread of its own.
pub(crate) struct StreamReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    at: u64,
    size: Option<u64>,
    ended: bool,
    /// Longest piece.
    step: usize,
    /// What was read and not yet given.
    rest: Bytes,
}

impl StreamReader {
    /// Standard input, in pieces of `step` bytes at most; it must have `size` bytes if that is known.
    ///
    /// # Errors
    /// It is closed.
    pub(crate) fn stdin(size: Option<u64>, step: u64) -> Result<Self> {
        let stdin = standard_stream::stdin().map_err(failed)?;
        let (to_copy, pieces) = mpsc::channel(STREAM_PIECES);
        tokio::task::spawn_blocking(move || read_all(stdin, &to_copy));
        Ok(Self {
            pieces,
            at: 0,
            size,
            ended: false,
            step: usize::try_from(step).unwrap_or(usize::MAX),
            rest: Bytes::new(),
        })
    }

    async fn next_piece(&mut self) -> Result<Option<Piece>> {
        if self.ended {
            return Ok(None);
        }
        if self.rest.is_empty() {
            self.rest = match self.pieces.recv().await {
                Some(piece) => piece.map_err(failed)?,
                None => return Err(failed(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let bytes = self.rest.split_to(self.step.min(self.rest.len()));
        let at = self.at;
        self.at += bytes.len() as u64;
        let range = ByteRange::from_bounds(at, self.at);
        let wrong = match (self.size, range) {
            (Some(size), None) => size != self.at,
            (Some(size), Some(_)) => size < self.at,
            (None, _) => false,
        };
        if wrong {
            let more = if range.is_some() { "more than " } else { "" };
            let message = format!(
                "standard input has {more}{} bytes, {} were announced",
                self.size.filter(|_| range.is_some()).unwrap_or(self.at),
                self.size.unwrap_or_default()
            );
            return Err(Error::new(ErrorKind::SourceCut, message));
        }
        self.ended = range.is_none();
        Ok(range.map(|range| Piece {
            range,
            content: Content::Bytes(bytes),
        }))
    }
}

/// Reads to the end, which is a piece of no bytes.
fn read_all(mut stdin: File, pieces: &mpsc::Sender<io::Result<Bytes>>) {
    let buffers = BufferPool::default();
    loop {
        let mut buffer = buffers.take(STREAM_READ);
        let (filled, failed) = fill(&mut stdin, buffer.bytes_mut(), pieces);
        let piece = match failed {
            Some(error) => Err(error),
            None => Ok(buffer.freeze().slice(..filled)),
        };
        let last = filled < STREAM_READ;
        if pieces.blocking_send(piece).is_err() {
            return;
        }
        if last && filled > 0 {
            let _ = pieces.blocking_send(Ok(Bytes::new()));
        }
        if last {
            return;
        }
    }
}

/// Fills a buffer as far as the stream goes, so that pieces are long and aligned.
fn fill(
    stdin: &mut File,
    buffer: &mut [u8],
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        if pieces.is_closed() {
            return (filled, Some(io::ErrorKind::Interrupted.into()));
        }
        match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], LOOK) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return (filled, Some(error.into())),
        }
        match stdin.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

fn failed(error: io::Error) -> Error {
    Error::io("reading the source", Path::new("standard input"), error)
}

impl Reader for StreamReader {
    fn size(&self) -> Option<u64> {
        self.size
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>>> {
        Box::pin(self.next_piece())
    }

    fn rewind(&mut self, _: Vec<ByteRange>) -> bool {
        false
    }
}
