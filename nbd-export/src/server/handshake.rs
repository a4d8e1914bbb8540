//! The handshake of one connection: `proto` decides, this module moves bytes and keeps the bounds.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::admission::{Evicted, Ticket};
use super::client_view::{ClientView, LookedUp};
use super::exports::{Client, Exports, Found};
use super::farewell::{at_closing, at_the_end, farewell};
use super::limits::{HANDSHAKE_BYTES_MAX, LINGER};
use super::stream::Stream;
use crate::export::Export;
use crate::proto::handshake::{Catalogue, Progress, Refusal, ServerHandshake};
use crate::proto::{ErrorText, ExportName, Negotiated, ProtocolError};
use crate::tls::{ServerTls, TlsError};

/// How a handshake ended without a session, where the client did not end it properly.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The client broke a rule that has no answer.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client has no TLS, or no certificate that lets it in.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The client sent options without end.
    #[error("the client sent more than {HANDSHAKE_BYTES_MAX} bytes without coming to an export")]
    Endless,
    /// Its time is over.
    #[error("it took too long")]
    TooLong,
    /// There are too many handshakes.
    #[error("it makes room for newer ones")]
    Evicted,
    /// The server has ended meanwhile.
    #[error("the server is shutting down")]
    Closing,
}

impl HandshakeError {
    /// Whether it is the client's fault. A client that only lists says goodbye and is gone before our answer: nothing to tell an
    /// operator.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Evicted | Self::Closing)
    }

    /// Whether its place is wanted now, so that nothing more is awaited of the client.
    fn is_given_up(&self) -> bool {
        matches!(self, Self::TooLong | Self::Evicted | Self::Closing)
    }
}

/// What a handshake has to keep to.
pub(super) struct Bounds {
    /// Time for all of it.
    pub(super) deadline: Duration,
    /// It has to make room.
    pub(super) evicted: Evicted,
    /// The server ends: the client is told so, and has a little time to hear it.
    pub(super) closing: watch::Receiver<bool>,
}

/// A session that may begin.
pub(super) struct Accepted {
    pub(super) session: Negotiated,
    pub(super) export: Arc<dyn Export>,
    /// What the client sent behind the handshake.
    pub(super) input: BytesMut,
}

/// Negotiates until the client has an export, and gives back the stream that it goes on with; `None` where the client has left
/// properly. With `tls`, nothing is told outside it.
pub(super) async fn negotiate(
    stream: Box<dyn Stream>,
    exports: &Arc<dyn Exports>,
    client: Client,
    tls: Option<&ServerTls>,
    ticket: &Ticket,
    bounds: Bounds,
) -> Result<Option<(Box<dyn Stream>, Accepted)>, HandshakeError> {
    let closing = bounds.closing.clone();
    let mut end = End::of(bounds);
    let mut output = BytesMut::new();
    let handshake = ServerHandshake::start(&mut output);
    let mut negotiation = Negotiation {
        stream,
        handshake: if tls.is_some() {
            handshake.requiring_tls()
        } else {
            handshake
        },
        client,
        input: BytesMut::new(),
        output,
        received: 0,
        looked_up: LookedUp::new(),
        entered: None,
        unclaimed: None,
        closing: closing.clone(),
    };
    let (ended, mut stream) = loop {
        let ran = tokio::select! {
            ran = negotiation.run(exports.as_ref(), ticket) => ran,
            why = end.comes() => Err(why),
        };
        match (ran, tls) {
            (Ok(Ended::StartTls), Some(tls)) => tokio::select! {
                secured = negotiation.secured(tls) => match secured {
                    Ok(inside) => negotiation = inside,
                    Err((why, stream)) => break (Err(why.into()), stream),
                },
                // There is no goodbye in the midst of TLS's own handshake.
                why = end.comes() => return Err(why),
            },
            (Ok(Ended::Awaited(name)), _) => {
                let begun = Instant::now();
                let _waits = ticket.waits();
                let making = make(exports, negotiation.client.clone(), name);
                tokio::select! {
                    // A client that is gone in the same moment has no use for it.
                    biased;
                    left = negotiation.leaves() => break (left.map_err(Into::into).map(|()| None), negotiation.stream),
                    why = end.comes_whenever() => break (Err(why), negotiation.stream),
                    made = making => {
                        negotiation.go_on_with(made, exports.as_ref(), ticket);
                        // The client had no part in how long that took, and in nothing else.
                        end.put_off(begun.elapsed());
                    }
                }
            }
            (Ok(Ended::Transmission(session)), _) => return Ok(Some(negotiation.accept(*session))),
            (Ok(Ended::StartTls | Ended::Left), _) => break (Ok(None), negotiation.stream),
            (Err(error), _) => break (Err(error), negotiation.stream),
        }
    };
    // TLS ends with a word of its own, whatever the session ends of. A client that is gone already does not hear it.
    if let Err(error) = &ended
        && error.is_given_up()
    {
        // Only what the socket takes at once.
        let _ = timeout(Duration::ZERO, stream.shutdown()).await;
        return ended;
    }
    let parting = async move {
        let _ = timeout(LINGER, stream.shutdown()).await;
        if let Ok(Some(socket)) = stream.into_socket() {
            farewell(socket, closing).await;
        }
    };
    tokio::select! {
        () = parting => {}
        _ = end.comes() => {}
    }
    ended
}

/// What ends a handshake, however far it has come.
struct End {
    time: Pin<Box<Sleep>>,
    evicted: Evicted,
    closing: watch::Receiver<bool>,
}

impl End {
    fn of(bounds: Bounds) -> Self {
        Self {
            time: Box::pin(sleep(bounds.deadline)),
            evicted: bounds.evicted,
            closing: bounds.closing,
        }
    }

    /// The client gets so much more time.
    fn put_off(&mut self, by: Duration) {
        let until = self.time.deadline() + by;
        self.time.as_mut().reset(until);
    }

    /// Ready at the end.
    async fn comes(&mut self) -> HandshakeError {
        let Self {
            time,
            evicted,
            closing,
            ..
        } = self;
        tokio::select! {
            () = time => HandshakeError::TooLong,
            _ = evicted => HandshakeError::Evicted,
            () = at_the_end(closing) => HandshakeError::Closing,
        }
    }

    /// The same while the client is the one that waits.
    async fn comes_whenever(&mut self) -> HandshakeError {
        let Self { evicted, closing, .. } = self;
        tokio::select! {
            _ = evicted => HandshakeError::Evicted,
            () = at_the_end(closing) => HandshakeError::Closing,
        }
    }
}

/// How a run of options ends.
enum Ended {
    StartTls,
    Awaited(ExportName),
    Transmission(Box<Negotiated>),
    Left,
}

/// A handshake and its connection.
struct Negotiation {
    stream: Box<dyn Stream>,
    handshake: ServerHandshake,
    client: Client,
    input: BytesMut,
    output: BytesMut,
    received: usize,
    looked_up: LookedUp,
    /// The session that begins once it is told, after its export was made.
    entered: Option<Box<Negotiated>>,
    /// What was made for the client, until it is told of it.
    unclaimed: Option<Unclaimed>,
    closing: watch::Receiver<bool>,
}

impl Negotiation {
    async fn run(&mut self, exports: &dyn Exports, ticket: &Ticket) -> Result<Ended, HandshakeError> {
        loop {
            // The greeting, or the answer to the last message.
            self.stream.write_all_buf(&mut self.output).await?;
            if let Some(session) = self.entered.take() {
                self.stream.flush().await?;
                if let Some(unclaimed) = self.unclaimed.take() {
                    unclaimed.claim();
                }
                return Ok(Ended::Transmission(session));
            }
            match self.step(exports, ticket)? {
                Progress::Continue => {}
                Progress::NeedInput => {
                    // Inside TLS what was written may not be sent yet.
                    self.stream.flush().await?;
                    if self.receive().await? == 0 {
                        return Ok(Ended::Left);
                    }
                    if self.received > HANDSHAKE_BYTES_MAX {
                        return Err(HandshakeError::Endless);
                    }
                }
                progress => {
                    self.stream.write_all_buf(&mut self.output).await?;
                    self.stream.flush().await?;
                    return Ok(match progress {
                        Progress::StartTls => Ended::StartTls,
                        Progress::Awaited(name) => Ended::Awaited(name),
                        Progress::Transmission(session) => Ended::Transmission(session),
                        _ => Ended::Left,
                    });
                }
            }
        }
    }

    /// Ready when the client has gone while it is the one that waits. What it sends meanwhile is kept; from one that sends more than fits a
    /// handshake nothing is taken.
    async fn leaves(&mut self) -> io::Result<()> {
        while self.received <= HANDSHAKE_BYTES_MAX {
            match self.stream.read_buf(&mut self.input).await? {
                0 => return Ok(()),
                count => self.received += count,
            }
        }
        std::future::pending().await
    }

    /// Waits for more of the client, and says how much there was. What comes once the server closes is answered accordingly.
    async fn receive(&mut self) -> io::Result<usize> {
        let mut read = pin!(self.stream.read_buf(&mut self.input));
        let closed = at_closing(&mut self.closing);
        let count = tokio::select! {
            // An option that comes in the same moment comes too late.
            biased;
            () = closed => {
                self.handshake.shut_down();
                read.await?
            }
            count = &mut read => count?,
        };
        self.received += count;
        Ok(count)
    }

    /// Calls `ask` with the catalogue of the client, which lives for a step only because it is not `Sync`.
    fn viewed<T>(
        &mut self,
        exports: &dyn Exports,
        ticket: &Ticket,
        ask: impl FnOnce(&mut Self, &ClientView<'_>) -> T,
    ) -> T {
        let client = self.client.clone();
        let view = ClientView {
            exports,
            client: &client,
            ticket,
            looked_up: RefCell::new(std::mem::take(&mut self.looked_up)),
        };
        let answer = ask(self, &view);
        self.looked_up = view.looked_up.into_inner();
        answer
    }

    /// One step of the handshake.
    fn step(&mut self, exports: &dyn Exports, ticket: &Ticket) -> Result<Progress, ProtocolError> {
        self.viewed(exports, ticket, |this, view| {
            this.handshake.advance(&mut this.input, &mut this.output, view)
        })
    }

    /// Answers the client that waited.
    fn go_on_with(
        &mut self,
        (name, made): (ExportName, Result<(Found, Unclaimed), Refusal>),
        exports: &dyn Exports,
        ticket: &Ticket,
    ) {
        let progress = self.viewed(exports, ticket, |this, view| {
            let made = made.and_then(|(found, unclaimed)| {
                this.unclaimed = Some(unclaimed);
                view.looked_up
                    .borrow_mut()
                    .insert(name.as_str().to_owned(), found);
                view.describe(name.as_str())
            });
            this.handshake.made(made, &mut this.output)
        });
        if let Progress::Transmission(session) = progress {
            self.entered = Some(session);
        } else {
            self.unclaimed = None;
            ticket.leave_seat();
        }
    }

    /// The same connection inside TLS, where everything begins anew; the stream outside it, where there is no TLS to be had.
    async fn secured(mut self, tls: &ServerTls) -> Result<Self, (TlsError, Box<dyn Stream>)> {
        let (stream, names) = tls.accept(self.stream).await?;
        tracing::debug!(?names, "TLS");
        self.handshake.secured();
        Ok(Self {
            stream: Box::new(stream),
            client: Client { names, ..self.client },
            input: BytesMut::new(),
            looked_up: LookedUp::new(),
            ..self
        })
    }

    fn accept(mut self, session: Negotiated) -> (Box<dyn Stream>, Accepted) {
        let found = self
            .looked_up
            .remove(session.requested.as_str())
            .expect("a session begins with an export that was described");
        let accepted = Accepted {
            session,
            export: found.export,
            input: self.input,
        };
        (self.stream, accepted)
    }
}

/// Has an export made for a client, on a thread: others are not to wait for it. It ends again where the client is gone by then.
async fn make(
    exports: &Arc<dyn Exports>,
    client: Client,
    name: ExportName,
) -> (ExportName, Result<(Found, Unclaimed), Refusal>) {
    let making = tokio::task::spawn_blocking({
        let (exports, name) = (Arc::clone(exports), name.clone());
        let threads = Handle::current();
        move || {
            let found = exports.make(name.as_str(), &client)?;
            let unclaimed = Unclaimed {
                made: Some((exports, found.name.clone())),
                threads,
            };
            Ok((found, unclaimed))
        }
    });
    let made = making.await.unwrap_or_else(|error| {
        tracing::error!(%error, export = name.as_str(), "while an export was made");
        Err(Refusal::Failed(ErrorText::new(
            "the server failed while it made the export",
        )))
    });
    (name, made)
}

/// An export that was made for a client which has not been told of it: nobody else knows its name. Dropped, it ends.
struct Unclaimed {
    made: Option<(Arc<dyn Exports>, String)>,
    /// Where it ends, which blocks.
    threads: Handle,
}

impl Unclaimed {
    /// The client has it now.
    fn claim(mut self) {
        self.made = None;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some((exports, name)) = self.made.take() {
            self.threads.spawn_blocking(move || exports.unmake(&name));
        }
    }
}
