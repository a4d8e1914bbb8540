//! A backup image as a source: the volume in it.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use volmap::range::ByteRange;

use super::limits::STREAM_PIECES;
use super::reader::{Content, Piece, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{End, Event, Header, Kind};
use crate::image_source::ImageSource;
use crate::interrupt::Interrupt;
use crate::unreadable::UnreadableRanges;

/// An image, decoded and verified by a thread of its own.
pub(crate) struct ImageReader {
    header: Header,
    events: mpsc::Receiver<(ByteRange, Option<Bytes>)>,
    decoder: Option<JoinHandle<Result<(End, UnreadableRanges)>>>,
    decoded: Option<(End, UnreadableRanges)>,
    /// Ends the thread, wherever it waits.
    interrupt: Interrupt,
}

impl ImageReader {
    /// Reads the header of an image, and begins with the rest.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`], [`ErrorKind::ImageUnsupported`], [`ErrorKind::Io`].
    pub(crate) async fn open(mut source: ImageSource) -> Result<Self> {
        let interrupt = Interrupt::default();
        let watched = interrupt.clone();
        let (to_copy, events) = mpsc::channel(STREAM_PIECES);
        let (to_open, header) = oneshot::channel();
        let mut to_open = Some(to_open);
        let decoder = tokio::task::spawn_blocking(move || {
            let mut unreadable = UnreadableRanges::default();
            let end = source.decode(&watched, |event| {
                let piece = match event {
                    Event::Header(header) => {
                        if let Some(to_open) = to_open.take() {
                            // Who asked may be gone; the next piece tells.
                            let _ = to_open.send(*header);
                        }
                        return Ok(());
                    }
                    Event::Records(_) | Event::Checkpoint(_) => return Ok(()),
                    Event::Data { range, bytes } => (range, Some(bytes)),
                    Event::Zero { range, kind } => {
                        if kind == Kind::Unreadable {
                            unreadable.add(range);
                        }
                        (range, None)
                    }
                };
                let interrupted = |_| Error::new(ErrorKind::Interrupted, "interrupted");
                to_copy.blocking_send(piece).map_err(interrupted)
            })?;
            Ok((end, unreadable))
        });
        // Before the first await, so that the thread ends with whoever stops waiting for the header.
        let guard = RaiseOnDrop(interrupt.clone());
        let Ok(header) = header.await else {
            let ended = decoder.await.map_err(broken)?;
            return Err(ended
                .err()
                .unwrap_or_else(|| Error::new(ErrorKind::ImageBad, "the image has no header")));
        };
        std::mem::forget(guard);
        Ok(Self {
            header,
            events,
            decoder: Some(decoder),
            decoded: None,
            interrupt,
        })
    }

    /// The header.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// What the image ended with, once the last piece was given.
    pub(crate) fn into_end(mut self) -> Option<(End, UnreadableRanges)> {
        self.decoded.take()
    }

    async fn next_piece(&mut self) -> Result<Option<Piece>> {
        if let Some((range, bytes)) = self.events.recv().await {
            let content = bytes.map_or(Content::Zero, Content::Bytes);
            return Ok(Some(Piece { range, content }));
        }
        // Only a decoder that has finished says that the image is whole and unchanged.
        if let Some(decoder) = self.decoder.take() {
            self.decoded = Some(decoder.await.map_err(broken)??);
        }
        Ok(None)
    }
}

fn broken(panicked: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "a thread broke off").caused_by(panicked)
}

struct RaiseOnDrop(Interrupt);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

impl Drop for ImageReader {
    fn drop(&mut self) {
        self.interrupt.raise();
    }
}

impl Reader for ImageReader {
    fn size(&self) -> Option<u64> {
        Some(self.header.size)
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>>> {
        Box::pin(self.next_piece())
    }

    fn rewind(&mut self, _: Vec<ByteRange>) -> bool {
        false
    }
}
