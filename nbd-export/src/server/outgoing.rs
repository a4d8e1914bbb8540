//! Replies on their way out: in order, as many in one system call as there are, and their memory back for the next ones.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use volmap::range::ByteRange;

use super::wire::Wire;
use crate::export::{Buffer, Pieces};

/// Slices of one system call. The kernel takes 1024 (`IOV_MAX`); a batch is bounded by the requests in flight anyway.
const SLICES_MAX: usize = 64;

/// A part of a reply.
#[derive(Debug)]
pub(super) enum Segment {
    /// Headers, descriptors, errors.
    Head(Bytes),
    /// Data in memory.
    Data(Buffer),
    /// Data of an immutable file.
    File { range: ByteRange, file: Arc<File> },
}

impl Segment {
    fn len(&self) -> u64 {
        match self {
            Self::Head(bytes) => bytes.len() as u64,
            Self::Data(buffer) => buffer.len() as u64,
            Self::File { range, .. } => range.len(),
        }
    }

    /// Bytes of our memory that it takes.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Head(bytes) => bytes.len(),
            Self::Data(buffer) => buffer.memory(),
            Self::File { .. } => 0,
        }
    }

    fn in_memory(&self) -> Option<&[u8]> {
        match self {
            Self::Head(bytes) => Some(bytes),
            Self::Data(buffer) => Some(buffer),
            Self::File { .. } => None,
        }
    }
}

/// A queue of replies, in the order in which they are sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    sent_of_first: u64,
    /// Bytes that were queued, and that were sent, since the connection began.
    queued: u64,
    sent: u64,
    /// For each reply, where it ends in the bytes that were queued, and what it costs until it is sent.
    ends: VecDeque<(u64, usize)>,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether the next bytes are those of a file.
    pub(super) fn is_at_file(&self) -> bool {
        matches!(self.segments.front(), Some(Segment::File { .. }))
    }

    /// Bytes that were sent since the connection began.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that are not sent yet.
    pub(super) fn len(&self) -> u64 {
        self.queued - self.sent
    }

    /// Replies that are not sent yet.
    pub(super) fn replies(&self) -> usize {
        self.ends.len()
    }

    /// Appends a whole reply that costs so much of the budget until it is sent.
    pub(super) fn push(&mut self, reply: impl IntoIterator<Item = Segment>, cost: usize) {
        for segment in reply {
            self.queued += segment.len();
            self.segments.push_back(segment);
        }
        self.ends.push_back((self.queued, cost));
    }

    /// Sends what the wire takes without waiting; ready when something was sent. Gives memory back to `pieces`.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut dyn Wire,
        pieces: &mut Pieces,
    ) -> Poll<io::Result<()>> {
        let sent = match self.segments.front() {
            None => return Poll::Ready(Ok(())),
            Some(Segment::File { range, file }) => {
                let offset = range.start() + self.sent_of_first;
                let left = usize::try_from(range.end() - offset).unwrap_or(usize::MAX);
                ready!(wire.poll_send_file(cx, file, offset, left))?
            }
            Some(_) => {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let mut skip = usize::try_from(self.sent_of_first).unwrap_or(usize::MAX);
                let mut count = 0;
                let memory = self.segments.iter().map_while(Segment::in_memory);
                for (slice, bytes) in slices.iter_mut().zip(memory) {
                    *slice = IoSlice::new(&bytes[skip..]);
                    (skip, count) = (0, count + 1);
                }
                let more = self.segments.len() > count;
                ready!(wire.poll_send(cx, &slices[..count], more))?
            }
        };
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(sent as u64, pieces);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, sent: u64, pieces: &mut Pieces) {
        self.sent += sent;
        self.sent_of_first += sent;
        while let Some(first) = self.segments.front()
            && self.sent_of_first >= first.len()
        {
            self.sent_of_first -= first.len();
            if let Some(Segment::Data(buffer)) = self.segments.pop_front() {
                pieces.give_back(buffer);
            }
        }
    }

    /// The cost of the next reply that is wholly sent, once each.
    pub(super) fn pop_sent(&mut self) -> Option<usize> {
        let (end, cost) = *self.ends.front()?;
        (end <= self.sent).then(|| {
            self.ends.pop_front();
            cost
        })
    }
}
