//! One session with many requests in flight.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use nbd_export::proto::handshake::{Goal, Outcome};
use nbd_export::proto::transmission::{Completion, ContextStatus};
use nbd_export::proto::{Command, ContextId, ContextName, Negotiated};
use nbd_export::uri::NbdUri;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use volmap::range::ByteRange;

use super::buffers::BufferPool;
use super::dial::{Dialled, dial};
use super::driver::{Driver, Submission};
use super::error::NbdError;
use super::limits::{Deadlines, REQUESTS_IN_FLIGHT};

/// A session with a server. Requests may be made from many tasks at once; replies come in any order. What ended it,
/// if anything did, is what every later request is told. Dropped, it awaits what is in flight, says goodbye and closes.
pub struct Connection {
    session: Arc<Negotiated>,
    requests: mpsc::Sender<Submission>,
    ending: Arc<OnceLock<NbdError>>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Enters the export of `uri` with those of `contexts` that it has.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn connect(uri: &NbdUri, contexts: Vec<ContextName>) -> Result<Self, NbdError> {
        Self::connect_with(uri, contexts, Deadlines::default(), BufferPool::default()).await
    }

    /// The same, with these deadlines and buffers.
    pub(crate) async fn connect_with(
        uri: &NbdUri,
        contexts: Vec<ContextName>,
        deadlines: Deadlines,
        buffers: BufferPool,
    ) -> Result<Self, NbdError> {
        let goal = Goal::Transmission {
            export: uri.export.clone(),
            contexts,
        };
        let dialled = dial(uri, goal, deadlines.handshake).await?;
        Self::start(dialled, deadlines, buffers)
    }

    /// Begins transmission on a socket that has got there.
    pub(super) fn start(
        dialled: Dialled,
        deadlines: Deadlines,
        buffers: BufferPool,
    ) -> Result<Self, NbdError> {
        let Outcome::Transmission(session) = dialled.outcome else {
            return Err(NbdError::Closed);
        };
        let (requests, submissions) = mpsc::channel(REQUESTS_IN_FLIGHT);
        let ending = Arc::new(OnceLock::new());
        let driver = Driver::new(
            dialled.stream,
            dialled.input,
            (*session).clone(),
            deadlines,
            buffers,
        );
        Ok(Self {
            session: Arc::new(*session),
            requests,
            ending: Arc::clone(&ending),
            driver: tokio::spawn(driver.run(submissions, ending)),
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

    /// Makes all that was written so far, by this connection and others where the export can multi-conn, durable.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn flush(&self) -> Result<(), NbdError> {
        self.request(Command::Flush).await.map(|_| ())
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

    /// Makes a request that has nothing to show.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn command(&self, command: Command) -> Result<(), NbdError> {
        self.request(command).await.map(|_| ())
    }

    /// Whether something ended the session.
    pub fn has_ended(&self) -> bool {
        self.ending.get().is_some()
    }

    async fn request(&self, command: Command) -> Result<Completion, NbdError> {
        let (result, answer) = oneshot::channel();
        // The driver keeps the deadlines, and ends the session when one passes.
        if self.requests.send(Submission { command, result }).await.is_err() {
            return Err(self.ended());
        }
        answer.await.unwrap_or_else(|_| Err(self.ended()))
    }

    fn ended(&self) -> NbdError {
        self.ending.get().cloned().unwrap_or(NbdError::Closed)
    }

    /// Says goodbye once every request is answered, and waits until that is sent.
    pub async fn disconnect(self) {
        let Self { requests, driver, .. } = self;
        drop(requests);
        // It ends by itself, by its deadlines at the latest; a panic there was reported by the runtime.
        let _ = driver.await;
    }
}
