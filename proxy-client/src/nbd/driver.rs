//! The task that owns a socket: it sends what is submitted, and hands every reply to whom it belongs.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use nbd_export::proto::transmission::{ClientTransmission, Completion, Finished};
use nbd_export::proto::{Command, Cookie, Errno, Negotiated};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::buffers::{Buffer, BufferPool};
use super::dial::Stream;
use super::error::NbdError;
use super::limits::{
    BYTES_IN_FLIGHT, Deadlines, HEADER_CHUNK, INPUT_CHUNK, LARGE_PAYLOAD, REQUESTS_IN_FLIGHT,
};
use super::outbox::Outbox;

/// Pieces that are sent with one call.
const PIECES: usize = 64;

/// A request, and where its result goes.
pub(super) struct Submission {
    pub(super) command: Command,
    pub(super) result: oneshot::Sender<Result<Completion, NbdError>>,
}

/// A request that was sent.
struct Waiting {
    since: Instant,
    bytes: usize,
    result: oneshot::Sender<Result<Completion, NbdError>>,
}

/// A large payload on its way into memory of its own.
struct Receiving {
    buffer: Buffer,
    received: usize,
}

/// Owns the socket.
pub(super) struct Driver {
    stream: Box<dyn Stream>,
    /// Headers, and payloads that are small.
    input: BytesMut,
    receiving: Option<Receiving>,
    /// Whether the last payload was large: then the next one is likely to be.
    large_replies: bool,
    buffers: BufferPool,
    outbox: Outbox,
    /// What was written may wait in the stream's own buffer.
    unflushed: bool,
    transmission: ClientTransmission,
    /// Cookies rise, so the first is the oldest.
    waiting: BTreeMap<Cookie, Waiting>,
    bytes_in_flight: usize,
    deadlines: Deadlines,
    /// The server's ESHUTDOWN: "the client MUST initiate a soft disconnect".
    shutdown: Option<NbdError>,
    /// Whether there is a handle from which requests can come.
    open: bool,
}

impl Driver {
    pub(super) fn new(
        stream: Box<dyn Stream>,
        input: BytesMut,
        session: Negotiated,
        deadlines: Deadlines,
        buffers: BufferPool,
    ) -> Self {
        Self {
            stream,
            input,
            receiving: None,
            large_replies: false,
            buffers,
            outbox: Outbox::default(),
            unflushed: false,
            transmission: ClientTransmission::new(session),
            waiting: BTreeMap::new(),
            bytes_in_flight: 0,
            deadlines,
            shutdown: None,
            open: true,
        }
    }

    /// Runs until every handle is gone and every request answered, or the session fails. What it failed of is in
    /// `ending` before anybody can miss an answer.
    pub(super) async fn run(
        mut self,
        mut submissions: mpsc::Receiver<Submission>,
        ending: Arc<OnceLock<NbdError>>,
    ) {
        let error = match self.drive(&mut submissions).await {
            Ok(()) => NbdError::Closed,
            Err(error) => error,
        };
        let error = ending.get_or_init(|| error);
        for waiting in self.waiting.into_values() {
            // A caller that has given up wants no answer.
            let _ = waiting.result.send(Err(error.clone()));
        }
        // Inside TLS this is what tells an end from a cut. A server that is gone does not hear it.
        let _ = timeout(self.deadlines.goodbye, self.stream.shutdown()).await;
    }

    async fn drive(&mut self, submissions: &mut mpsc::Receiver<Submission>) -> Result<(), NbdError> {
        let mut timer = pin!(sleep_until(Instant::now() + self.deadlines.request));
        poll_fn(|cx| {
            // Whatever is ready is done in one go, so that requests and replies travel in batches.
            loop {
                self.take_submissions(submissions, cx);
                self.poll_send(cx)?;
                let received = self.poll_receive(cx)?;
                if self.waiting.is_empty() && (!self.open || self.shutdown.is_some()) {
                    return Poll::Ready(Ok::<_, NbdError>(()));
                }
                if received.is_pending() {
                    break;
                }
            }
            self.poll_deadline(timer.as_mut(), cx)
        })
        .await?;
        self.say_goodbye().await?;
        self.shutdown.take().map_or(Ok(()), Err)
    }

    fn has_room(&self) -> bool {
        self.open
            && self.shutdown.is_none()
            && self.waiting.len() < REQUESTS_IN_FLIGHT
            && self.bytes_in_flight < BYTES_IN_FLIGHT
    }

    fn take_submissions(&mut self, submissions: &mut mpsc::Receiver<Submission>, cx: &mut Context<'_>) {
        while self.has_room() {
            match submissions.poll_recv(cx) {
                Poll::Ready(Some(submission)) => self.submit(submission),
                Poll::Ready(None) => self.open = false,
                Poll::Pending => return,
            }
        }
    }

    /// Sends what the socket takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), NbdError> {
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = self.outbox.chunks_vectored(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(written) => self.outbox.advance(written?),
                Poll::Pending => return Ok(()),
            }
            self.unflushed = true;
        }
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Receives once, and hands out what is whole. Reading and writing go on beside each other: a server may stop reading
    /// until its replies are taken.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NbdError>> {
        // A handshake may have left bytes behind it.
        if self.receiving.is_none() {
            self.advance()?;
        }
        let received = if let Some(Receiving { buffer, received }) = &mut self.receiving {
            let mut rest = ReadBuf::new(&mut buffer.bytes_mut()[*received..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut rest))?;
            let count = rest.filled().len();
            *received += count;
            count
        } else {
            let room = match self.transmission.payload_due() {
                Some(due) => due - self.input.len(),
                None if self.large_replies => HEADER_CHUNK,
                None => INPUT_CHUNK,
            };
            self.input.reserve(room);
            let mut input = (&mut self.input).limit(room);
            ready!(pin!(self.stream.read_buf(&mut input)).poll(cx))?
        };
        if received == 0 {
            return Poll::Ready(Err(NbdError::Closed));
        }
        if let Some(Receiving { buffer, .. }) =
            self.receiving.take_if(|r| r.received == r.buffer.as_ref().len())
        {
            let finished = self.transmission.take_payload(buffer.freeze())?;
            finished.into_iter().for_each(|finished| self.deliver(finished));
        }
        if self.receiving.is_none() {
            self.advance()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the messages that are whole; a large payload that is due gets its own memory.
    fn advance(&mut self) -> Result<(), NbdError> {
        while let Some(finished) = self.transmission.advance(&mut self.input)? {
            self.large_replies = false;
            self.deliver(finished);
        }
        if let Some(due) = self
            .transmission
            .payload_due()
            .filter(|due| *due >= LARGE_PAYLOAD)
        {
            let mut buffer = self.buffers.take(due);
            let received = self.input.len();
            buffer.bytes_mut()[..received].copy_from_slice(&self.input);
            self.input.clear();
            self.large_replies = true;
            self.receiving = Some(Receiving { buffer, received });
        }
        Ok(())
    }

    /// Fails when the oldest request is too old.
    fn poll_deadline(&self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Result<(), NbdError>> {
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let oldest = self.waiting.first_key_value();
            let deadline = oldest.map_or(now, |(_, waiting)| waiting.since) + self.deadlines.request;
            // A server that has lost a request may answer it yet, but nobody waits for that.
            if deadline <= now {
                return Poll::Ready(Err(NbdError::Timeout));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn submit(&mut self, Submission { command, result }: Submission) {
        let bytes = match &command {
            Command::Read { length, .. } => *length as usize,
            Command::Write { data, .. } => data.len(),
            _ => 0,
        };
        match self.transmission.submit_head(&command, self.outbox.heads()) {
            Ok(cookie) => {
                if let Command::Write { data, .. } = command {
                    self.outbox.push(data);
                }
                self.bytes_in_flight += bytes;
                let since = Instant::now();
                self.waiting.insert(cookie, Waiting { since, bytes, result });
            }
            Err(rule) => {
                let _ = result.send(Err(NbdError::Unfit(rule)));
            }
        }
    }

    fn deliver(&mut self, Finished { cookie, result }: Finished) {
        let result = result.map_err(|error| {
            let shutdown = error.errno == Errno::Shutdown;
            let error = NbdError::Server(error);
            if shutdown {
                self.shutdown.get_or_insert_with(|| error.clone());
            }
            error
        });
        if let Some(waiting) = self.waiting.remove(&cookie) {
            self.bytes_in_flight -= waiting.bytes;
            let _ = waiting.result.send(result);
        }
    }

    async fn say_goodbye(&mut self) -> Result<(), NbdError> {
        self.transmission.disconnect(self.outbox.heads());
        let sent = timeout(self.deadlines.goodbye, async {
            self.stream.write_all_buf(&mut self.outbox).await
        });
        sent.await.unwrap_or(Ok(()))?;
        Ok(())
    }
}
