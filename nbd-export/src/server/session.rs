//! The transmission phase of one connection: requests are read one after another, served side by side, and answered as
//! they are ready.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::limits::{
    BYTES_MAX, DESCRIPTOR_COST, EXTENT_LEN_MIN, INPUT_CHUNK, REPLIES_BATCH, REQUESTS_MAX, STATUS_COST,
};
use super::replies::{Answerer, Reply, Selected};
use crate::export::{ContextIndex, Export};
use crate::proto::transmission::{Incoming, ReplyEncoder, RequestDecoder};
use crate::proto::{Command, Errno, Negotiated, ProtocolError, ReplyTo};

/// Bytes of the in-flight budget are counted in pieces of this size, so that they fit a semaphore.
const COST_UNIT: usize = 1024;

/// How a session ended, where the client did not end it properly.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The client broke a rule that leaves no way to go on.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client closed the connection in the middle of a request.
    #[error("the client left in the middle of a request")]
    CutShort,
}

/// A reply on its way out, with the budget that it gives back once it is written.
struct Outgoing {
    reply: Reply,
    _budget: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// Serves requests until the client disconnects, breaks a rule, or `closing` turns true; requests in flight are
/// finished in each case. `input` holds what came behind the handshake.
pub(super) async fn transmit<R, W>(
    reader: R,
    writer: W,
    input: BytesMut,
    session: Negotiated,
    export: Arc<dyn Export>,
    mut closing: watch::Receiver<bool>,
) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (outgoing, replies) = mpsc::unbounded_channel();
    // A set, so that the writer ends with this future when the server cannot wait any longer.
    let mut writing = JoinSet::new();
    writing.spawn(write_replies(writer, replies));
    let mut requests = Requests {
        reader,
        input,
        decoder: RequestDecoder::default(),
        session,
    };
    let dispatch = Dispatch::new(&requests.session, export, outgoing);
    let read = tokio::select! {
        read = requests.serve(&dispatch) => read,
        // The writer has failed: nothing that is read could be answered.
        () = dispatch.outgoing.closed() => Ok(()),
        _ = closing.wait_for(|closing| *closing) => Ok(()),
    };
    // The writer ends when the last request in flight has given its reply.
    drop(dispatch);
    let wrote = writing
        .join_next()
        .await
        .map_or(Ok(Ok(())), |wrote| wrote.map_err(io::Error::other))?;
    read?;
    Ok(wrote?)
}

/// The requests of a connection.
struct Requests<R> {
    reader: R,
    input: BytesMut,
    decoder: RequestDecoder,
    session: Negotiated,
}

impl<R: AsyncRead + Unpin> Requests<R> {
    async fn serve(&mut self, dispatch: &Dispatch) -> Result<(), SessionError> {
        loop {
            match self.decoder.decode(&mut self.input, &self.session)? {
                Some(Incoming::Request { reply_to, command }) => dispatch.start(reply_to, command).await,
                Some(Incoming::Refused { reply_to, rule }) => {
                    dispatch.refuse(reply_to, rule.errno(), rule.to_string()).await;
                }
                Some(Incoming::Disconnect) => return Ok(()),
                None => {
                    self.input.reserve(INPUT_CHUNK);
                    if self.reader.read_buf(&mut self.input).await? == 0 {
                        // Some clients close without DISC; between requests nothing is lost by it.
                        let clean = self.input.is_empty() && self.decoder.is_between_requests();
                        return if clean {
                            Ok(())
                        } else {
                            Err(SessionError::CutShort)
                        };
                    }
                }
            }
        }
    }
}

/// Starts requests within the connection's budget.
struct Dispatch {
    answerer: Arc<Answerer>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
}

impl Dispatch {
    fn new(session: &Negotiated, export: Arc<dyn Export>, outgoing: mpsc::UnboundedSender<Outgoing>) -> Self {
        let position = |name: &str| export.contexts().iter().position(|known| known.name == name);
        let selected = session.contexts.iter().filter_map(|context| {
            Some(Selected {
                id: context.id,
                index: ContextIndex(position(context.name.as_str())?),
            })
        });
        Self {
            answerer: Arc::new(Answerer {
                selected: selected.collect(),
                encoder: ReplyEncoder::new(session),
                export,
            }),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            bytes: Arc::new(Semaphore::new(BYTES_MAX / COST_UNIT)),
            outgoing,
        }
    }

    /// Waits until the budget has room for `cost` bytes.
    async fn budget(&self, cost: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let units = cost.div_ceil(COST_UNIT).clamp(1, BYTES_MAX / COST_UNIT);
        let units = u32::try_from(units).expect("the budget fits 32 bits");
        let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(units).await.ok()?;
        Some((request, bytes))
    }

    /// Serves a request on a thread that may block.
    async fn start(&self, to: ReplyTo, command: Command) {
        let budget = self.budget(cost(&command)).await;
        let answerer = Arc::clone(&self.answerer);
        let outgoing = self.outgoing.clone();
        tokio::task::spawn_blocking(move || {
            let reply = catch_unwind(AssertUnwindSafe(|| answerer.answer(to, command)));
            // A client that never gets its answer would wait for ever; the panic itself is in the log.
            let reply = reply.unwrap_or_else(|_| answerer.error(to, Errno::Io, "internal error"));
            // Nobody to write it to: the connection is gone.
            let _ = outgoing.send(Outgoing {
                reply,
                _budget: budget,
            });
        });
    }

    /// Answers a request that is not served. It counts against the budget too: a client could send such requests and
    /// never read the answers.
    async fn refuse(&self, to: ReplyTo, errno: Errno, text: String) {
        tracing::debug!(cookie = %to.cookie, %errno, text, "request refused");
        let budget = self.budget(text.len()).await;
        let reply = self.answerer.error(to, errno, text);
        // Nobody to write it to: the connection is gone.
        let _ = self.outgoing.send(Outgoing {
            reply,
            _budget: budget,
        });
    }
}

/// Bytes of memory that a request may need.
fn cost(command: &Command) -> usize {
    match command {
        Command::Read { length, .. } => usize::try_from(*length).unwrap_or(usize::MAX),
        Command::Write { data, .. } => data.len(),
        Command::BlockStatus {
            req_one: false,
            length,
            ..
        } => {
            let extents = usize::try_from(*length).unwrap_or(usize::MAX) / EXTENT_LEN_MIN;
            extents.saturating_mul(DESCRIPTOR_COST).min(STATUS_COST)
        }
        Command::Cache { .. } => usize::try_from(crate::export::limits::CACHE_STEP).unwrap_or(usize::MAX),
        Command::BlockStatus { req_one: true, .. }
        | Command::Flush
        | Command::Trim { .. }
        | Command::WriteZeroes { .. } => COST_UNIT,
    }
}

/// Writes replies as they come, several in one system call, until all senders are gone.
async fn write_replies<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut replies: mpsc::UnboundedReceiver<Outgoing>,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(REPLIES_BATCH);
    while replies.recv_many(&mut batch, REPLIES_BATCH).await > 0 {
        let mut buffers = Buffers(batch.iter_mut().flat_map(|out| out.reply.drain(..)).collect());
        writer.write_all_buf(&mut buffers).await?;
        batch.clear();
    }
    writer.flush().await
}

/// Several buffers that are written as one.
struct Buffers(VecDeque<Bytes>);

impl Buf for Buffers {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |first| first)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        for (slice, buffer) in slices.iter_mut().zip(&self.0) {
            *slice = IoSlice::new(buffer);
        }
        slices.len().min(self.0.len())
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.0.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.0.pop_front();
        }
        assert_eq!(count, 0, "not more is written than there is");
    }
}
