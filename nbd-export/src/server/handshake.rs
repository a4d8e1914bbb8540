//! The handshake of one connection: `proto` decides, this module moves bytes and keeps the bounds.

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::admission::{Evicted, Ticket};
use super::client_view::{ClientView, LookedUp};
use super::exports::{Client, Exports};
use super::farewell::{at_closing, at_the_end, farewell};
use super::limits::{HANDSHAKE_BYTES_MAX, LINGER};
use super::stream::Stream;
use crate::export::Export;
use crate::proto::handshake::{Progress, ServerHandshake};
use crate::proto::{Negotiated, ProtocolError};
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
    exports: &dyn Exports,
    client: Client,
    tls: Option<&ServerTls>,
    ticket: &Ticket,
    bounds: Bounds,
) -> Result<Option<(Box<dyn Stream>, Accepted)>, HandshakeError> {
    let closing = bounds.closing.clone();
    let mut given_up = pin!(given_up(bounds));
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
        closing: closing.clone(),
    };
    let (ended, mut stream) = loop {
        let ran = tokio::select! {
            ran = negotiation.run(exports, ticket) => ran,
            why = &mut given_up => Err(why),
        };
        match (ran, tls) {
            (Ok(Ended::StartTls), Some(tls)) => tokio::select! {
                secured = negotiation.secured(tls) => match secured {
                    Ok(inside) => negotiation = inside,
                    Err((why, stream)) => break (Err(why.into()), stream),
                },
                // There is no goodbye in the midst of TLS's own handshake.
                why = &mut given_up => return Err(why),
            },
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
        _ = given_up => {}
    }
    ended
}

/// Ready when a handshake is over, however far it has come.
async fn given_up(bounds: Bounds) -> HandshakeError {
    let Bounds {
        deadline,
        evicted,
        mut closing,
    } = bounds;
    tokio::select! {
        () = sleep(deadline) => HandshakeError::TooLong,
        _ = evicted => HandshakeError::Evicted,
        () = at_the_end(&mut closing) => HandshakeError::Closing,
    }
}

/// How a run of options ends.
enum Ended {
    StartTls,
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
    closing: watch::Receiver<bool>,
}

impl Negotiation {
    async fn run(&mut self, exports: &dyn Exports, ticket: &Ticket) -> Result<Ended, HandshakeError> {
        loop {
            // The greeting, or the answer to the last message.
            self.stream.write_all_buf(&mut self.output).await?;
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
                        Progress::Transmission(session) => Ended::Transmission(session),
                        _ => Ended::Left,
                    });
                }
            }
        }
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

    /// One step of the handshake. The catalogue of a client lives for a step only, because it is not `Sync`.
    fn step(&mut self, exports: &dyn Exports, ticket: &Ticket) -> Result<Progress, ProtocolError> {
        let view = ClientView {
            exports,
            client: &self.client,
            ticket,
            looked_up: RefCell::new(std::mem::take(&mut self.looked_up)),
        };
        let progress = self.handshake.advance(&mut self.input, &mut self.output, &view);
        self.looked_up = view.looked_up.into_inner();
        progress
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
