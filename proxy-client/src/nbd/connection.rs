//! One session with many requests in flight.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nbd_export::proto::handshake::{Goal, Outcome};
use nbd_export::proto::transmission::{ClientTransmission, Completion, ContextStatus, Finished};
use nbd_export::proto::{Command, ContextId, ContextName, Cookie, Negotiated};
use nbd_export::uri::NbdUri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use volmap::range::ByteRange;

use super::dial::{Stream, dial};
use super::error::NbdError;
use super::limits::{INPUT_CHUNK, REQUEST_DEADLINE, REQUESTS_IN_FLIGHT};

/// A request, and where its result goes.
struct Submission {
    command: Command,
    result: oneshot::Sender<Result<Completion, NbdError>>,
}

/// A session with a server. Requests may be made from many tasks at once; replies come in any order. Dropped, it says
/// goodbye and closes.
pub struct Connection {
    session: Arc<Negotiated>,
    requests: mpsc::Sender<Submission>,
    /// Ends with the connection when a request has timed out: after that nothing the server says is of use.
    driver: JoinSet<()>,
}

impl Connection {
    /// Enters the export of `uri` with those of `contexts` that it has.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn connect(uri: &NbdUri, contexts: Vec<ContextName>) -> Result<Self, NbdError> {
        let dialled = dial(
            uri,
            Goal::Transmission {
                export: uri.export.clone(),
                contexts,
            },
        )
        .await?;
        let Outcome::Transmission(session) = dialled.outcome else {
            return Err(NbdError::Closed);
        };
        let (requests, submissions) = mpsc::channel(REQUESTS_IN_FLIGHT);
        let driver = Driver {
            stream: dialled.stream,
            input: dialled.input,
            output: BytesMut::new(),
            transmission: ClientTransmission::new((*session).clone()),
            waiting: HashMap::new(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run(submissions));
        Ok(Self {
            session: Arc::new(*session),
            requests,
            driver: tasks,
        })
    }

    /// What the handshake settled.
    pub fn session(&self) -> &Negotiated {
        &self.session
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// [`NbdError`]; never with a part of the bytes.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        match self
            .request(Command::Read {
                offset,
                length,
                dont_fragment: false,
            })
            .await?
        {
            Completion::Read(reply) => Ok(reply.data),
            _ => Err(NbdError::Closed),
        }
    }

    /// Writes bytes; they are on stable storage at the return (FUA) if the export knows that flag.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), NbdError> {
        self.request(Command::Write { offset, data, fua })
            .await
            .map(|_| ())
    }

    /// Gives bytes back.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn trim(&self, range: ByteRange) -> Result<(), NbdError> {
        let command = Command::Trim {
            offset: range.start(),
            length: range.len(),
            fua: false,
        };
        self.request(command).await.map(|_| ())
    }

    /// Makes bytes zero.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn write_zeroes(&self, range: ByteRange, no_hole: bool) -> Result<(), NbdError> {
        let (offset, length) = (range.start(), range.len());
        let command = Command::WriteZeroes {
            offset,
            length,
            fua: false,
            no_hole,
            fast: false,
        };
        self.request(command).await.map(|_| ())
    }

    /// The status of `range` in every selected context, or in those of `filter` alone (extended headers and the payload flag
    /// are needed for that). A context's descriptors begin at the start of the range and may end before or behind its end.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn block_status(
        &self,
        range: ByteRange,
        filter: Option<Vec<ContextId>>,
    ) -> Result<Vec<ContextStatus>, NbdError> {
        let command = Command::BlockStatus {
            offset: range.start(),
            length: range.len(),
            req_one: false,
            filter,
        };
        match self.request(command).await? {
            Completion::Status(contexts) => Ok(contexts),
            _ => Err(NbdError::Closed),
        }
    }

    async fn request(&self, command: Command) -> Result<Completion, NbdError> {
        let (result, answer) = oneshot::channel();
        let asked = async {
            self.requests
                .send(Submission { command, result })
                .await
                .map_err(|_| NbdError::Closed)?;
            answer.await.unwrap_or(Err(NbdError::Closed))
        };
        timeout(REQUEST_DEADLINE, asked)
            .await
            .unwrap_or(Err(NbdError::Timeout))
    }

    /// Says goodbye once every request is answered, and waits until that is sent.
    pub async fn disconnect(self) {
        let Self {
            requests, mut driver, ..
        } = self;
        drop(requests);
        driver.join_next().await;
    }
}

/// Owns the socket.
struct Driver {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: BytesMut,
    transmission: ClientTransmission,
    waiting: HashMap<Cookie, oneshot::Sender<Result<Completion, NbdError>>>,
}

impl Driver {
    async fn run(mut self, submissions: mpsc::Receiver<Submission>) {
        let error = match self.drive(submissions).await {
            Ok(()) => NbdError::Closed,
            Err(error) => error,
        };
        for (_, result) in self.waiting.drain() {
            // A caller that has given up wants no answer.
            let _ = result.send(Err(error.clone()));
        }
    }

    /// Until every handle is gone and every request answered, or the connection fails.
    async fn drive(&mut self, mut submissions: mpsc::Receiver<Submission>) -> Result<(), NbdError> {
        let mut open = true;
        loop {
            while let Some(finished) = self.transmission.advance(&mut self.input)? {
                self.deliver(finished);
            }
            if !open && self.waiting.is_empty() {
                self.transmission.disconnect(&mut self.output);
                self.stream.write_all_buf(&mut self.output).await?;
                return Ok(());
            }
            let room = open && self.waiting.len() < REQUESTS_IN_FLIGHT;
            self.input.reserve(INPUT_CHUNK);
            // Reading and writing go on beside each other: a server may stop reading until its replies are taken.
            let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
            tokio::select! {
                read = reader.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(NbdError::Closed);
                    }
                }
                written = writer.write_buf(&mut self.output), if !self.output.is_empty() => {
                    written?;
                }
                submission = submissions.recv(), if room => match submission {
                    Some(submission) => self.submit(submission),
                    None => open = false,
                },
            }
        }
    }

    fn submit(&mut self, Submission { command, result }: Submission) {
        match self.transmission.submit(&command, &mut self.output) {
            Ok(cookie) => {
                self.waiting.insert(cookie, result);
            }
            Err(rule) => {
                let _ = result.send(Err(NbdError::Unfit(rule)));
            }
        }
    }

    fn deliver(&mut self, Finished { cookie, result }: Finished) {
        if let Some(waiting) = self.waiting.remove(&cookie) {
            let _ = waiting.send(result.map_err(NbdError::Server));
        }
    }
}
