//! The server's handshake.

use bytes::{Buf, BufMut, BytesMut};

use super::catalogue::{Catalogue, Entry, Refusal};
use crate::proto::constants::{
    EXPORT_NAME_ZEROES, INIT_MAGIC, InfoCode, OPTION_MAGIC, OptionCode, OptionReplyCode,
};
use crate::proto::context::{ContextId, SelectedContext};
use crate::proto::error::{PeerMisbehaved, ProtocolError};
use crate::proto::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::proto::info::{ExportInfo, Info};
use crate::proto::limits::MAX_OPTION_DATA;
use crate::proto::option::{
    ContextRequest, ContextRequestError, InfoRequest, OPTION_HEADER_LEN, decode_option_header,
    encode_option_reply, encode_server,
};
use crate::proto::session::{HeaderStyle, Negotiated};
use crate::proto::text::{ErrorText, ExportName};

/// Where a handshake stands after a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// One message was taken. Send what is in the output, then call again: the answers of a greedy client must
    /// not pile up.
    Continue,
    /// More bytes are needed.
    NeedInput,
    /// Transmission begins, with the bytes that are left in the input.
    Transmission(Box<Negotiated>),
    /// The client enters an export that has to be made. Go on with [`ServerHandshake::made`], and with nothing else.
    Awaited(ExportName),
    /// Send what is in the output, shake hands for TLS, and go on inside with [`ServerHandshake::secured`].
    StartTls,
    /// The client is done: send what is in the output and close.
    Closed,
}

/// Where the handshake stands with TLS ("TLS support", modes NOTLS and FORCEDTLS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tls {
    /// There is none.
    Off,
    /// Nothing is told before it.
    Awaited,
    /// All goes through it.
    Established,
}

/// The server's side of one handshake.
#[derive(Debug)]
pub struct ServerHandshake {
    tls: Tls,
    client: Option<ClientFlags>,
    style: HeaderStyle,
    /// The export name that the selection was made for, and the selection.
    selected: Option<(ExportName, Vec<SelectedContext>)>,
    last_id: u32,
    /// The GO that waits for its export to be made.
    awaited: Option<InfoRequest>,
    /// The server is going away.
    shut_down: bool,
}

/// The options of the handshake come from one place, so that every answer names the option it answers.
struct Answer<'a> {
    option: OptionCode,
    out: &'a mut BytesMut,
}

impl Answer<'_> {
    fn reply(&mut self, reply: OptionReplyCode, data: &[u8]) {
        encode_option_reply(self.option, reply, data, self.out);
    }

    fn ack(&mut self) {
        self.reply(OptionReplyCode::ACK, &[]);
    }

    fn error(&mut self, reply: OptionReplyCode, text: &ErrorText) {
        self.reply(reply, text.as_str().as_bytes());
    }

    fn invalid(&mut self, text: impl ToString) {
        self.error(OptionReplyCode::ERR_INVALID, &ErrorText::new(text.to_string()));
    }

    #[allow(clippy::needless_pass_by_value, reason = "a refusal is told once")]
    fn refuse(&mut self, refusal: Refusal) {
        self.error(refusal.reply(), &refusal.text());
    }
}

impl ServerHandshake {
    /// Begins with the greeting.
    pub fn start(output: &mut BytesMut) -> Self {
        output.put_u64(INIT_MAGIC);
        output.put_u64(OPTION_MAGIC);
        output.put_u16((HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).to_wire());
        Self {
            tls: Tls::Off,
            client: None,
            style: HeaderStyle::Simple,
            selected: None,
            last_id: 0,
            awaited: None,
            shut_down: false,
        }
    }

    /// Tells nothing to a client before STARTTLS.
    #[must_use]
    pub fn requiring_tls(mut self) -> Self {
        self.tls = Tls::Awaited;
        self
    }

    /// Goes on inside TLS, after [`Progress::StartTls`]. What was negotiated in the clear could have been anybody's, and
    /// counts for nothing (CVE-2021-3716).
    pub fn secured(&mut self) {
        self.tls = Tls::Established;
        self.style = HeaderStyle::Simple;
        self.selected = None;
    }

    /// From now on every option is answered with NBD_REP_ERR_SHUTDOWN: "the server is unwilling to continue negotiation as it is
    /// in the process of being shut down".
    pub fn shut_down(&mut self) {
        self.shut_down = true;
    }

    /// Takes at most one message from the start of `input` and appends its answer to `output`.
    ///
    /// # Errors
    /// The session must end at once, without another byte: the client broke a rule that has no answer, or used
    /// EXPORT_NAME for an export that it cannot have.
    pub fn advance(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        catalogue: &dyn Catalogue,
    ) -> Result<Progress, ProtocolError> {
        let Some(client) = self.client else {
            return self.take_client_flags(input);
        };
        let Some((option, length)) = decode_option_header(input)? else {
            return Ok(Progress::NeedInput);
        };
        // Before anything is waited for: a giant length must not hold the connection (CVE-2017-15119).
        if length > MAX_OPTION_DATA {
            return Err(PeerMisbehaved::OptionTooLong { option, length }.into());
        }
        if !client.contains(ClientFlags::FIXED_NEWSTYLE) && option != OptionCode::EXPORT_NAME {
            return Err(PeerMisbehaved::OptionWithoutFixedNewstyle(option).into());
        }
        let whole = OPTION_HEADER_LEN + length as usize;
        if input.len() < whole {
            return Ok(Progress::NeedInput);
        }
        let message = input.split_to(whole);
        let data = &message[OPTION_HEADER_LEN..];
        let mut answer = Answer { option, out: output };
        match option {
            OptionCode::ABORT => {
                answer.ack();
                return Ok(Progress::Closed);
            }
            // It has no other answer.
            OptionCode::EXPORT_NAME if self.shut_down || self.tls == Tls::Awaited => {
                return Err(ProtocolError::ExportNameRefused);
            }
            _ if self.shut_down => answer.refuse(Refusal::Shutdown),
            OptionCode::STARTTLS => return self.start_tls(data, input, &mut answer),
            _ if self.tls == Tls::Awaited => answer.error(
                OptionReplyCode::ERR_TLS_REQD,
                &ErrorText::new("this server wants TLS: use STARTTLS, or a nbds:// URI"),
            ),
            OptionCode::EXPORT_NAME => return self.export_name(data, client, output, catalogue),
            OptionCode::LIST => list(data, &mut answer, catalogue),
            OptionCode::INFO | OptionCode::GO => return Ok(self.info(data, &mut answer, catalogue)),
            OptionCode::STRUCTURED_REPLY | OptionCode::EXTENDED_HEADERS => {
                self.raise_style(data, &mut answer);
            }
            OptionCode::LIST_META_CONTEXT => self.list_contexts(data, &mut answer, catalogue),
            OptionCode::SET_META_CONTEXT => self.set_contexts(data, &mut answer, catalogue),
            _ => answer.error(
                OptionReplyCode::ERR_UNSUP,
                &ErrorText::new(format!("option {option} is not known here")),
            ),
        }
        Ok(Progress::Continue)
    }

    /// Answers STARTTLS. `behind` is what the client has sent after it.
    fn start_tls(
        &mut self,
        data: &[u8],
        behind: &[u8],
        answer: &mut Answer<'_>,
    ) -> Result<Progress, ProtocolError> {
        if !data.is_empty() {
            answer.invalid("STARTTLS has no data");
            return Ok(Progress::Continue);
        }
        match self.tls {
            Tls::Off => answer.error(
                OptionReplyCode::ERR_POLICY,
                &ErrorText::new("this server has no TLS"),
            ),
            Tls::Established => answer.invalid("TLS is in force already"),
            // An honest client waits for the answer. Whoever sent this sent it in the clear.
            Tls::Awaited if !behind.is_empty() => return Err(PeerMisbehaved::BytesBeforeTls.into()),
            Tls::Awaited => {
                answer.ack();
                return Ok(Progress::StartTls);
            }
        }
        Ok(Progress::Continue)
    }

    fn take_client_flags(&mut self, input: &mut BytesMut) -> Result<Progress, ProtocolError> {
        if input.len() < 4 {
            return Ok(Progress::NeedInput);
        }
        let flags = ClientFlags::from_wire(input.get_u32());
        let unknown = flags.without(ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES);
        if unknown != ClientFlags::NONE {
            return Err(PeerMisbehaved::UnknownClientFlags(unknown).into());
        }
        self.client = Some(flags);
        Ok(Progress::Continue)
    }

    fn export_name(
        &mut self,
        data: &[u8],
        client: ClientFlags,
        output: &mut BytesMut,
        catalogue: &dyn Catalogue,
    ) -> Result<Progress, ProtocolError> {
        if self.style == HeaderStyle::Extended {
            return Err(PeerMisbehaved::ExportNameAfterExtendedHeaders.into());
        }
        let name = ExportName::from_wire(data)?;
        let export = catalogue
            .describe(name.as_str())
            .map_err(|_| ProtocolError::ExportNameRefused)?;
        let session = self.settle(name, export);
        output.put_u64(session.export.size);
        output.put_u16(session.export.flags.to_wire());
        if !client.contains(ClientFlags::NO_ZEROES) {
            output.put_bytes(0, EXPORT_NAME_ZEROES);
        }
        Ok(Progress::Transmission(Box::new(session)))
    }

    /// Answers INFO and GO.
    fn info(&mut self, data: &[u8], answer: &mut Answer<'_>, catalogue: &dyn Catalogue) -> Progress {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(error) => {
                answer.invalid(error);
                return Progress::Continue;
            }
        };
        let name = request.name.as_str();
        let entry = match answer.option {
            OptionCode::GO => catalogue.enter(name),
            _ => catalogue.describe(name).map(Entry::Ready),
        };
        match entry {
            Ok(Entry::Ready(export)) => self.tell(request, export, answer),
            Ok(Entry::Awaited) => {
                let name = request.name.clone();
                self.awaited = Some(request);
                Progress::Awaited(name)
            }
            Err(refusal) => {
                answer.refuse(refusal);
                Progress::Continue
            }
        }
    }

    /// Goes on after [`Progress::Awaited`], with the export that was made or why it was not.
    pub fn made(&mut self, made: Result<ExportInfo, Refusal>, output: &mut BytesMut) -> Progress {
        let mut answer = Answer {
            option: OptionCode::GO,
            out: output,
        };
        let Some(request) = self.awaited.take() else {
            return Progress::Continue;
        };
        match made {
            _ if self.shut_down => answer.refuse(Refusal::Shutdown),
            Ok(export) => return self.tell(request, export, &mut answer),
            Err(refusal) => answer.refuse(refusal),
        }
        Progress::Continue
    }

    /// Tells of an export, and begins the session if it is entered.
    fn tell(&mut self, request: InfoRequest, export: ExportInfo, answer: &mut Answer<'_>) -> Progress {
        let wanted = request.infos;
        let session = self.settle(request.name, export);
        let export = &session.export;
        let mut infos = vec![Info::Export {
            size: export.size,
            flags: export.flags,
        }];
        let wants = |code| wanted.contains(&code);
        if wants(InfoCode::NAME) {
            infos.push(Info::Name(export.name.clone()));
        }
        if wants(InfoCode::DESCRIPTION) && !export.description.is_empty() {
            infos.push(Info::Description(export.description.clone()));
        }
        if wants(InfoCode::BLOCK_SIZE) {
            infos.push(Info::BlockSize(export.block));
        }
        for info in infos {
            let mut data = BytesMut::new();
            info.encode(&mut data);
            answer.reply(OptionReplyCode::INFO, &data);
        }
        answer.ack();
        match answer.option {
            OptionCode::GO => Progress::Transmission(Box::new(session)),
            _ => Progress::Continue,
        }
    }

    /// The session that begins if `requested` is entered now.
    fn settle(&self, requested: ExportName, mut export: ExportInfo) -> Negotiated {
        // A selection counts only for the export that it was made for.
        let contexts = match &self.selected {
            Some((name, contexts)) if *name == requested => contexts.clone(),
            _ => Vec::new(),
        };
        let mut flags = export.flags | TransmissionFlags::HAS_FLAGS;
        if self.style == HeaderStyle::Simple {
            flags = flags.without(TransmissionFlags::SEND_DF);
        }
        if self.style != HeaderStyle::Extended || contexts.is_empty() {
            flags = flags.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            flags = flags.without(TransmissionFlags::SEND_FAST_ZERO);
        }
        export.flags = flags;
        Negotiated {
            requested,
            export,
            style: self.style,
            contexts,
        }
    }

    fn raise_style(&mut self, data: &[u8], answer: &mut Answer<'_>) {
        let wanted = match answer.option {
            OptionCode::EXTENDED_HEADERS => HeaderStyle::Extended,
            _ => HeaderStyle::Structured,
        };
        if !data.is_empty() {
            answer.invalid(format!("{} has no data", answer.option));
        } else if self.style == wanted {
            answer.invalid(format!("{} is in force already", answer.option));
        } else if self.style > wanted {
            answer.error(
                OptionReplyCode::ERR_EXT_HEADER_REQD,
                &ErrorText::new("extended headers are in force"),
            );
        } else {
            self.style = wanted;
            answer.ack();
        }
    }

    fn list_contexts(&self, data: &[u8], answer: &mut Answer<'_>, catalogue: &dyn Catalogue) {
        let Some(request) = self.context_request(data, answer) else {
            return;
        };
        match catalogue.contexts(request.export.as_str(), self.style) {
            Err(refusal) => answer.refuse(refusal),
            Ok(names) => {
                let queries = &request.queries;
                for name in &names {
                    if queries.is_empty() || queries.iter().any(|query| name.is_listed_by(query)) {
                        reply_context(ContextId(0), name.as_str(), answer);
                    }
                }
                answer.ack();
            }
        }
    }

    fn set_contexts(&mut self, data: &[u8], answer: &mut Answer<'_>, catalogue: &dyn Catalogue) {
        // "Issuing this command replaces all previously-set metadata contexts (including when this command fails)."
        self.selected = None;
        let Some(request) = self.context_request(data, answer) else {
            return;
        };
        match catalogue.contexts(request.export.as_str(), self.style) {
            Err(refusal) => answer.refuse(refusal),
            Ok(names) => {
                // In the order of the queries, each context once.
                let mut contexts = Vec::<SelectedContext>::new();
                for query in request.queries {
                    let chosen = contexts.iter().any(|context| context.name == query);
                    if names.contains(&query) && !chosen {
                        self.last_id += 1;
                        reply_context(ContextId(self.last_id), query.as_str(), answer);
                        contexts.push(SelectedContext {
                            id: ContextId(self.last_id),
                            name: query,
                        });
                    }
                }
                answer.ack();
                self.selected = Some((request.export, contexts));
            }
        }
    }

    /// The request, unless it is answered with an error here.
    fn context_request(&self, data: &[u8], answer: &mut Answer<'_>) -> Option<ContextRequest> {
        if self.style == HeaderStyle::Simple {
            answer.invalid("negotiate structured replies or extended headers first");
            return None;
        }
        match ContextRequest::decode(data) {
            Ok(request) => Some(request),
            Err(error @ ContextRequestError::TooMany(_)) => {
                answer.error(OptionReplyCode::ERR_TOO_BIG, &ErrorText::new(error.to_string()));
                None
            }
            Err(error) => {
                answer.invalid(error);
                None
            }
        }
    }
}

fn list(data: &[u8], answer: &mut Answer<'_>, catalogue: &dyn Catalogue) {
    if !data.is_empty() {
        answer.invalid("LIST has no data");
        return;
    }
    match catalogue.list() {
        Err(refusal) => answer.refuse(refusal),
        Ok(exports) => {
            for export in exports {
                let mut data = BytesMut::new();
                encode_server(&export.name, &export.description, &mut data);
                answer.reply(OptionReplyCode::SERVER, &data);
            }
            answer.ack();
        }
    }
}

fn reply_context(id: ContextId, name: &str, answer: &mut Answer<'_>) {
    let mut data = BytesMut::with_capacity(4 + name.len());
    data.put_u32(id.0);
    data.put_slice(name.as_bytes());
    answer.reply(OptionReplyCode::META_CONTEXT, &data);
}
