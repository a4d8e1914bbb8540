//! From a URI to a session: sockets and handshakes.

use std::time::Duration;

use bytes::BytesMut;
use nbd_export::proto::constants::OptionCode;
use nbd_export::proto::handshake::{ClientHandshake, ClientProgress, Goal, Outcome};
use nbd_export::proto::option::ListedExport;
use nbd_export::proto::{ContextName, HeaderStyle, ProtocolError};
use nbd_export::uri::{NbdAddress, NbdUri};
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
    if uri.tls.is_some() {
        return Err(NbdError::from(std::io::Error::from(
            std::io::ErrorKind::Unsupported,
        )));
    }
    timeout(deadline, async {
        let stream: Box<dyn Stream> = match &uri.address {
            NbdAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
            NbdAddress::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        shake_hands(stream, goal).await
    })
    .await
    .unwrap_or(Err(NbdError::Timeout))
}

async fn shake_hands(mut stream: Box<dyn Stream>, goal: Goal) -> Result<Dialled, NbdError> {
    let mut handshake = ClientHandshake::new(goal, HeaderStyle::Extended);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    loop {
        let progress = handshake.advance(&mut input, &mut output);
        // On an error this is a polite end, which the server need not wait for.
        let sent = stream.write_all_buf(&mut output).await;
        match progress? {
            ClientProgress::Done(outcome) => {
                sent?;
                return Ok(Dialled {
                    stream,
                    input,
                    outcome,
                });
            }
            ClientProgress::NeedInput => sent?,
        }
        input.reserve(INPUT);
        if stream.read_buf(&mut input).await? == 0 {
            // EXPORT_NAME has no other way to be refused.
            let refused = handshake.open_option() == Some(OptionCode::EXPORT_NAME);
            return Err(if refused {
                ProtocolError::ExportNameRefused.into()
            } else {
                NbdError::Closed
            });
        }
    }
}

/// The names of the contexts of an export that match one of `queries`: names, or prefixes that end at a colon. A server
/// without contexts has none to list.
///
/// # Errors
/// [`NbdError`]; the export is not there, for one.
pub async fn list_contexts(uri: &NbdUri, queries: Vec<ContextName>) -> Result<Vec<ContextName>, NbdError> {
    let goal = Goal::ListContexts {
        export: uri.export.clone(),
        queries,
    };
    match dial(uri, goal, Deadlines::default().handshake)
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
