//! From a URI to a session: sockets and handshakes.

use std::time::Duration;

use bytes::BytesMut;
use nbd_export::proto::constants::OptionCode;
use nbd_export::proto::handshake::{ClientHandshake, ClientProgress, Goal, Outcome};
use nbd_export::proto::option::ListedExport;
use nbd_export::proto::{ContextName, HeaderStyle, ProtocolError};
use nbd_export::tls::{ClientTls, TlsError};
use nbd_export::uri::{NbdAddress, NbdUri, TlsParameters};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::error::NbdError;
use super::limits::Deadlines;

/// Bytes that are read from the socket at once: a server says little before transmission.
const INPUT: usize = 4096;

/// A socket of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A socket on which the handshake has reached its goal, with the bytes behind it.
pub(super) struct Dialled {
    pub(super) stream: Box<dyn Stream>,
    pub(super) input: BytesMut,
    pub(super) outcome: Outcome,
}

/// Connects and shakes hands towards `goal`.
pub(super) async fn dial(uri: &NbdUri, goal: Goal, deadline: Duration) -> Result<Dialled, NbdError> {
    // Before anything is said to anybody.
    let tls = match &uri.tls {
        Some(parameters) => Some(load(parameters)?),
        None => None,
    };
    timeout(deadline, async {
        let stream: Box<dyn Stream> = match &uri.address {
            NbdAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
            NbdAddress::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let handshake = ClientHandshake::new(goal, HeaderStyle::Extended);
        let mut negotiation = Negotiation {
            stream,
            handshake: if tls.is_some() {
                handshake.requiring_tls()
            } else {
                handshake
            },
            input: BytesMut::new(),
            output: BytesMut::new(),
        };
        loop {
            match (negotiation.run().await, &tls) {
                (Ok(Reached::Tls), Some(tls)) => {
                    negotiation = negotiation.secured(tls, uri.server_name()).await?;
                }
                (Ok(Reached::Tls), None) => return Err(NbdError::Closed),
                (Ok(Reached::Goal(outcome)), _) => return Ok(negotiation.dialled(outcome).await),
                (Err(error), _) => {
                    negotiation.close().await;
                    return Err(error);
                }
            }
        }
    })
    .await
    .unwrap_or(Err(NbdError::Timeout))
}

/// What a TLS directory holds. There is no authority that everybody trusts with disks, so one has to be named.
fn load(parameters: &TlsParameters) -> Result<ClientTls, TlsError> {
    let directory = parameters.directory().ok_or(TlsError::NoDirectory)?;
    ClientTls::load(directory)
}

/// Where a run of options ends.
enum Reached {
    Tls,
    Goal(Outcome),
}

/// A handshake and its socket.
struct Negotiation {
    stream: Box<dyn Stream>,
    handshake: ClientHandshake,
    input: BytesMut,
    output: BytesMut,
}

impl Negotiation {
    async fn run(&mut self) -> Result<Reached, NbdError> {
        loop {
            let progress = self.handshake.advance(&mut self.input, &mut self.output);
            // On an error this is a polite end, which the server need not wait for.
            let sent = self.send().await;
            match progress? {
                ClientProgress::Done(outcome) => return sent.map(|()| Reached::Goal(outcome)),
                ClientProgress::StartTls => return sent.map(|()| Reached::Tls),
                ClientProgress::NeedInput => sent?,
            }
            self.input.reserve(INPUT);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                // EXPORT_NAME has no other way to be refused.
                let refused = self.handshake.open_option() == Some(OptionCode::EXPORT_NAME);
                return Err(if refused {
                    ProtocolError::ExportNameRefused.into()
                } else {
                    NbdError::Closed
                });
            }
        }
    }

    async fn send(&mut self) -> Result<(), NbdError> {
        self.stream.write_all_buf(&mut self.output).await?;
        Ok(self.stream.flush().await?)
    }

    /// The same connection inside TLS.
    async fn secured(mut self, tls: &ClientTls, name: &str) -> Result<Self, NbdError> {
        let stream = tls.connect(self.stream, name).await?;
        let mut output = BytesMut::new();
        self.handshake.secured(&mut output)?;
        Ok(Self {
            stream: Box::new(stream),
            handshake: self.handshake,
            input: BytesMut::new(),
            output,
        })
    }

    async fn dialled(mut self, outcome: Outcome) -> Dialled {
        if !matches!(outcome, Outcome::Transmission(_)) {
            self.close().await;
        }
        Dialled {
            stream: self.stream,
            input: self.input,
            outcome,
        }
    }

    /// Says that this is the end, and no cut: TLS has a word for it. A server that is gone does not hear it.
    async fn close(&mut self) {
        self.stream.shutdown().await.ok();
    }
}

/// The names of the contexts of an export that match one of `queries`: names, or prefixes that end at a colon. A server
/// without contexts has none to list.
///
/// # Errors
/// [`NbdError`]; the export is not there, for one.
pub async fn list_contexts(uri: &NbdUri, queries: Vec<ContextName>) -> Result<Vec<ContextName>, NbdError> {
    list_contexts_within(uri, queries, Deadlines::default()).await
}

/// The same, with these deadlines.
pub(crate) async fn list_contexts_within(
    uri: &NbdUri,
    queries: Vec<ContextName>,
    deadlines: Deadlines,
) -> Result<Vec<ContextName>, NbdError> {
    let goal = Goal::ListContexts {
        export: uri.export.clone(),
        queries,
    };
    match dial(uri, goal, deadlines.handshake)
        .await
        .map(|dialled| dialled.outcome)
    {
        Ok(Outcome::Contexts(names)) => Ok(names),
        Ok(_) => Err(NbdError::Closed),
        Err(error) if error.knows_no_contexts() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The exports of a server.
///
/// # Errors
/// [`NbdError`]; the server does not tell, for one.
pub async fn list_exports(uri: &NbdUri) -> Result<Vec<ListedExport>, NbdError> {
    match dial(uri, Goal::ListExports, Deadlines::default().handshake)
        .await?
        .outcome
    {
        Outcome::Exports(exports) => Ok(exports),
        _ => Err(NbdError::Closed),
    }
}
