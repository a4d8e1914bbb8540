//! The task that owns a socket: it sends what is submitted, and hands every reply to whom it belongs.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use nbd_export::proto::transmission::{ClientTransmission, Completion, Finished};
use nbd_export::proto::{Command, Cookie, Errno, Negotiated};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::dial::Stream;
use super::error::NbdError;
use super::limits::{BYTES_IN_FLIGHT, Deadlines, INPUT_CHUNK, REQUESTS_IN_FLIGHT};

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

/// Owns the socket.
pub(super) struct Driver {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    transmission: ClientTransmission,
    /// Cookies rise, so the first is the oldest.
    waiting: BTreeMap<Cookie, Waiting>,
    bytes_in_flight: usize,
    deadlines: Deadlines,
    /// The server's ESHUTDOWN: "the client MUST initiate a soft disconnect".
    shutdown: Option<NbdError>,
}

impl Driver {
    pub(super) fn new(
        stream: Box<dyn Stream>,
        input: BytesMut,
        session: Negotiated,
        deadlines: Deadlines,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            input,
            output: BytesMut::new(),
            transmission: ClientTransmission::new(session),
            waiting: BTreeMap::new(),
            bytes_in_flight: 0,
            deadlines,
            shutdown: None,
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
    }

    async fn drive(&mut self, submissions: &mut mpsc::Receiver<Submission>) -> Result<(), NbdError> {
        let mut open = true;
        let timer = sleep_until(Instant::now() + self.deadlines.request);
        tokio::pin!(timer);
        loop {
            while let Some(finished) = self.transmission.advance(&mut self.input)? {
                self.deliver(finished);
            }
            if self.waiting.is_empty() && (!open || self.shutdown.is_some()) {
                self.say_goodbye().await?;
                return self.shutdown.take().map_or(Ok(()), Err);
            }
            let room = open
                && self.shutdown.is_none()
                && self.waiting.len() < REQUESTS_IN_FLIGHT
                && self.bytes_in_flight < BYTES_IN_FLIGHT;
            self.input.reserve(INPUT_CHUNK);
            // Reading and writing go on beside each other: a server may stop reading until its replies are taken.
            tokio::select! {
                read = self.reader.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(NbdError::Closed);
                    }
                }
                written = self.writer.write_buf(&mut self.output), if !self.output.is_empty() => {
                    written?;
                }
                submission = submissions.recv(), if room => match submission {
                    Some(submission) => self.submit(submission),
                    None => open = false,
                },
                () = &mut timer => timer.as_mut().reset(self.next_deadline()?),
            }
        }
    }

    /// The instant at which the oldest request would be too old.
    fn next_deadline(&self) -> Result<Instant, NbdError> {
        let now = Instant::now();
        let oldest = self.waiting.first_key_value();
        let deadline = oldest.map_or(now, |(_, waiting)| waiting.since) + self.deadlines.request;
        // A server that has lost a request may answer it yet, but nobody waits for that.
        if deadline <= now {
            Err(NbdError::Timeout)
        } else {
            Ok(deadline)
        }
    }

    fn submit(&mut self, Submission { command, result }: Submission) {
        let bytes = match &command {
            Command::Read { length, .. } => *length as usize,
            Command::Write { data, .. } => data.len(),
            _ => 0,
        };
        match self.transmission.submit(&command, &mut self.output) {
            Ok(cookie) => {
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
        self.transmission.disconnect(&mut self.output);
        timeout(
            self.deadlines.goodbye,
            self.writer.write_all_buf(&mut self.output),
        )
        .await
        .unwrap_or(Ok(()))?;
        Ok(())
    }
}
