//! The handshake of one connection: `proto` decides, this module moves bytes and keeps the bounds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::admission::Ticket;
use super::exports::{Audience, Exports};
use super::limits::HANDSHAKE_BYTES_MAX;
use crate::export::{Export, ExportInfo};
use crate::proto::handshake::{Catalogue, Progress, Refusal, ServerHandshake};
use crate::proto::option::ListedExport;
use crate::proto::{ContextName, ExportName, HeaderStyle, Negotiated, ProtocolError, TransmissionFlags};

/// How a handshake ended without a session, where the client did not end it properly.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The client broke a rule that has no answer.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
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

/// Negotiates until the client has an export; `None` where it has left properly.
pub(super) async fn negotiate<S>(
    stream: &mut S,
    exports: &dyn Exports,
    audience: Audience,
    ticket: &Ticket,
) -> Result<Option<Accepted>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut handshake = ServerHandshake::start(&mut output);
    stream.write_all_buf(&mut output).await?;
    let mut looked_up = LookedUp::new();
    let mut received = 0;
    loop {
        let (progress, now) = step(
            &mut handshake,
            &mut input,
            &mut output,
            exports,
            audience,
            ticket,
            looked_up,
        );
        looked_up = now;
        let progress = progress?;
        stream.write_all_buf(&mut output).await?;
        match progress {
            Progress::Continue => {}
            Progress::NeedInput => {
                let count = stream.read_buf(&mut input).await?;
                received += count;
                if count == 0 {
                    return Ok(None);
                }
                if received > HANDSHAKE_BYTES_MAX {
                    return Err(HandshakeError::Endless);
                }
            }
            Progress::Transmission(session) => {
                let export = looked_up
                    .remove(session.requested.as_str())
                    .expect("a session begins with an export that was described");
                return Ok(Some(Accepted {
                    session: *session,
                    export,
                    input,
                }));
            }
            Progress::Closed => {
                stream.shutdown().await?;
                return Ok(None);
            }
        }
    }
}

/// The exports that the client asked for, by the names that it used: no more than there are.
type LookedUp = BTreeMap<String, Arc<dyn Export>>;

/// One step of the handshake. The catalogue of a client lives for a step only, because it is not `Sync`.
fn step(
    handshake: &mut ServerHandshake,
    input: &mut BytesMut,
    output: &mut BytesMut,
    exports: &dyn Exports,
    audience: Audience,
    ticket: &Ticket,
    looked_up: LookedUp,
) -> (Result<Progress, ProtocolError>, LookedUp) {
    let view = ClientView {
        exports,
        audience,
        ticket,
        looked_up: RefCell::new(looked_up),
    };
    let progress = handshake.advance(input, output, &view);
    (progress, view.looked_up.into_inner())
}

/// What one client sees of the exports.
///
/// All answers about one name are about the same export: between two options of a client a frozen image may be thawed and
/// another made under its name, and contexts selected on the first must not meet the second. A client that holds on
/// to the first is told by ESHUTDOWN that it is gone.
struct ClientView<'a> {
    exports: &'a dyn Exports,
    audience: Audience,
    ticket: &'a Ticket,
    looked_up: RefCell<LookedUp>,
}

impl ClientView<'_> {
    fn look_up(&self, name: &str) -> Result<Arc<dyn Export>, Refusal> {
        let mut looked_up = self.looked_up.borrow_mut();
        if let Some(export) = looked_up.get(name) {
            return Ok(Arc::clone(export));
        }
        let export = self.exports.open(name, self.audience).ok_or(Refusal::Unknown)?;
        looked_up.insert(name.to_owned(), Arc::clone(&export));
        Ok(export)
    }
}

impl Catalogue for ClientView<'_> {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        let offers = self.exports.offers(self.audience);
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
            tracing::warn!(
                export = name,
                "refused: there are as many connections as --max-connections allows"
            );
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
    use crate::server::Offer;
    use crate::server::admission::{Admission, Peer};
    use crate::server::limits::Limits;

    /// Another frozen image under the same name, each time somebody asks.
    struct Refrozen;

    impl Exports for Refrozen {
        fn offers(&self, _: Audience) -> Vec<Offer> {
            Vec::new()
        }

        fn open(&self, _: &str, _: Audience) -> Option<Arc<dyn Export>> {
            Some(Arc::new(FrozenExport::new(Scripted::drawn())))
        }
    }

    #[test]
    fn one_handshake_sees_one_frozen_image_of_a_name() {
        let (ticket, _stay) = Admission::new(&Limits::default()).enter(Peer::Unnamed);
        let view = ClientView {
            exports: &Refrozen,
            audience: Audience { writable: false },
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
