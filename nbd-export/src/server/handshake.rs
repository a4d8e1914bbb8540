//! The handshake of one connection: `proto` decides, this module moves bytes and keeps the bounds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::admission::Ticket;
use super::exports::{Client, Exports};
use super::limits::HANDSHAKE_BYTES_MAX;
use super::stream::Stream;
use crate::export::{Export, ExportInfo};
use crate::proto::handshake::{Catalogue, Progress, Refusal, ServerHandshake};
use crate::proto::option::ListedExport;
use crate::proto::{ContextName, ExportName, HeaderStyle, Negotiated, ProtocolError, TransmissionFlags};
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
) -> Result<Option<(Box<dyn Stream>, Accepted)>, HandshakeError> {
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
    };
    let ended = loop {
        match (negotiation.run(exports, ticket).await, tls) {
            (Ok(Ended::StartTls), Some(tls)) => negotiation = negotiation.secured(tls).await?,
            (Ok(Ended::Transmission(session)), _) => return Ok(Some(negotiation.accept(*session))),
            (Ok(Ended::StartTls | Ended::Left), _) => break Ok(None),
            (Err(error), _) => break Err(error),
        }
    };
    // TLS ends with a word of its own, whatever the session ends of. A client that is gone already does not hear it.
    let _ = negotiation.stream.shutdown().await;
    ended
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
                    let count = self.stream.read_buf(&mut self.input).await?;
                    self.received += count;
                    if count == 0 {
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

    /// The same connection inside TLS, where everything begins anew.
    async fn secured(mut self, tls: &ServerTls) -> Result<Self, HandshakeError> {
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
        let export = self
            .looked_up
            .remove(session.requested.as_str())
            .expect("a session begins with an export that was described");
        let accepted = Accepted {
            session,
            export,
            input: self.input,
        };
        (self.stream, accepted)
    }
}

/// The exports that the client asked for, by the names that it used: no more than there are.
type LookedUp = BTreeMap<String, Arc<dyn Export>>;

/// What one client sees of the exports.
///
/// All answers about one name are about the same export: between two options of a client a frozen image may be thawed and
/// another made under its name, and contexts selected on the first must not meet the second. A client that holds on
/// to the first is told by ESHUTDOWN that it is gone.
struct ClientView<'a> {
    exports: &'a dyn Exports,
    client: &'a Client,
    ticket: &'a Ticket,
    looked_up: RefCell<LookedUp>,
}

impl ClientView<'_> {
    fn look_up(&self, name: &str) -> Result<Arc<dyn Export>, Refusal> {
        let mut looked_up = self.looked_up.borrow_mut();
        if let Some(export) = looked_up.get(name) {
            return Ok(Arc::clone(export));
        }
        let export = self.exports.open(name, self.client).ok_or(Refusal::Unknown)?;
        looked_up.insert(name.to_owned(), Arc::clone(&export));
        Ok(export)
    }
}

impl Catalogue for ClientView<'_> {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        let offers = self.exports.offers(self.client);
        Ok(offers
            .into_iter()
            .filter_map(|offer| {
                Some(ListedExport {
                    name: ExportName::new(&offer.name).ok()?,
                    description: offer.description,
                })
            })
            .collect())
    }

    fn describe(&self, name: &str) -> Result<crate::proto::ExportInfo, Refusal> {
        let info = self.look_up(name)?.info();
        if !self.ticket.take_seat() {
            if self.ticket.is_news() {
                tracing::warn!(
                    export = name,
                    "refused: there are as many connections as --max-connections allows"
                );
            }
            return Err(Refusal::Busy);
        }
        Ok(crate::proto::ExportInfo {
            name: ExportName::new(name).map_err(|_| Refusal::Unknown)?,
            size: info.size,
            flags: flags(&info),
            block: info.block,
            description: info.description,
        })
    }

    fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
        let export = self.look_up(name)?;
        let offered = export
            .contexts()
            .iter()
            .filter(|context| !context.extended || style == HeaderStyle::Extended);
        Ok(offered
            .filter_map(|context| ContextName::new(&context.name).ok())
            .collect())
    }
}

/// What an export can. Several connections are safe for each: a frozen one never changes, and every writable one has one
/// writer behind all connections, whose flush covers what any of them wrote.
fn flags(info: &ExportInfo) -> TransmissionFlags {
    let always = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_DF
        | TransmissionFlags::CAN_MULTI_CONN
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    always
        | if info.fast_zero {
            TransmissionFlags::SEND_FAST_ZERO
        } else {
            TransmissionFlags::NONE
        }
        | if info.writable {
            TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES
        } else {
            TransmissionFlags::READ_ONLY
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::FrozenExport;
    use crate::export::scripted::Scripted;
    use crate::server::admission::{Admission, Peer};
    use crate::server::limits::Limits;
    use crate::server::{Audience, Offer};

    /// Another frozen image under the same name, each time somebody asks.
    struct Refrozen;

    impl Exports for Refrozen {
        fn offers(&self, _: &Client) -> Vec<Offer> {
            Vec::new()
        }

        fn open(&self, _: &str, _: &Client) -> Option<Arc<dyn Export>> {
            Some(Arc::new(FrozenExport::new(Scripted::drawn())))
        }
    }

    #[test]
    fn one_handshake_sees_one_frozen_image_of_a_name() {
        let (ticket, _stay) = Admission::new(&Limits::default()).enter(Peer::Unnamed);
        let view = ClientView {
            exports: &Refrozen,
            client: &Client {
                audience: Audience { writable: false },
                address: None,
                names: Vec::new(),
            },
            ticket: &ticket,
            looked_up: RefCell::default(),
        };
        let contexts = |name| view.contexts(name, HeaderStyle::Extended).unwrap();
        let first = contexts("vm");
        view.describe("vm").unwrap();
        assert_eq!(contexts("vm"), first);
        assert_ne!(contexts("other"), first);
        assert_eq!(
            contexts("vm"),
            first,
            "a question about another export changes nothing"
        );
        let export = view.looked_up.borrow().get("vm").cloned().unwrap();
        let names: Vec<ContextName> = export
            .contexts()
            .iter()
            .map(|context| ContextName::new(&context.name).unwrap())
            .collect();
        assert_eq!(names, first, "the session gets the export that was described");
    }
}
