//! The client's handshake.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::collected::Collected;
use crate::proto::constants::{
    EXPORT_NAME_ZEROES, INIT_MAGIC, InfoCode, OLDSTYLE_MAGIC, OPTION_MAGIC, OptionCode, OptionReplyCode,
};
use crate::proto::context::{ContextName, SelectedContext};
use crate::proto::error::{DecodeError, OptionRefused, PeerIncompatible, PeerMisbehaved, ProtocolError};
use crate::proto::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::proto::info::{BlockSizes, ExportInfo};
use crate::proto::limits::{MAX_EXPORT_SIZE, MAX_OPTION_REPLY};
use crate::proto::option::{
    ContextRequest, InfoRequest, ListedExport, OPTION_REPLY_HEADER_LEN, OptionReplyHeader, encode_option,
};
use crate::proto::session::{HeaderStyle, Negotiated};
use crate::proto::text::{ErrorText, ExportName};

/// What a client wants from a handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Enter an export, with those of these contexts that it has.
    Transmission {
        /// The export; empty for the default one.
        export: ExportName,
        /// Full names.
        contexts: Vec<ContextName>,
    },
    /// List the exports, and leave.
    ListExports,
    /// List the contexts of an export, and leave.
    ListContexts {
        /// The export.
        export: ExportName,
        /// Names, or prefixes that end at a colon; none means all.
        queries: Vec<ContextName>,
    },
}

/// What a client got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Transmission begins, with the bytes that are left in the input.
    Transmission(Box<Negotiated>),
    /// The exports. Send what is in the output and close.
    Exports(Vec<ListedExport>),
    /// The contexts. Send what is in the output and close.
    Contexts(Vec<ContextName>),
}

/// Where a handshake stands after a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientProgress {
    /// Send what is in the output; more bytes are needed.
    NeedInput,
    /// Shake hands for TLS, and go on inside with [`ClientHandshake::secured`].
    StartTls,
    /// The goal is reached.
    Done(Outcome),
}

/// The client's side of one handshake.
#[derive(Debug)]
pub struct ClientHandshake {
    goal: Goal,
    highest: HeaderStyle,
    style: HeaderStyle,
    /// The option whose reply is awaited; `None` before the greeting.
    open: Option<OptionCode>,
    no_zeroes: bool,
    /// TLS is wanted, and not there yet: nothing else may be asked.
    tls_awaited: bool,
    selected: Vec<SelectedContext>,
    collected: Collected,
}

impl ClientHandshake {
    /// A handshake towards `goal`, with the best headers that both sides know up to `highest`.
    pub fn new(goal: Goal, highest: HeaderStyle) -> Self {
        Self {
            goal,
            highest,
            style: HeaderStyle::Simple,
            open: None,
            no_zeroes: false,
            tls_awaited: false,
            selected: Vec::new(),
            collected: Collected::default(),
        }
    }

    /// Asks for nothing outside TLS: a server that has none gets nothing but a goodbye (CVE-2019-14842).
    #[must_use]
    pub fn requiring_tls(mut self) -> Self {
        self.tls_awaited = true;
        self
    }

    /// Goes on inside TLS, after [`ClientProgress::StartTls`]. Nothing was asked or told before.
    ///
    /// # Errors
    /// As [`ClientHandshake::advance`].
    pub fn secured(&mut self, output: &mut BytesMut) -> Result<(), ProtocolError> {
        self.tls_awaited = false;
        self.send_first(output)
    }

    /// The option whose answer is awaited. A server that closes now says no to it in the only way it knows.
    pub fn open_option(&self) -> Option<OptionCode> {
        self.open
    }

    /// Takes what it can from `input` and appends what is to be sent to `output`.
    ///
    /// # Errors
    /// The goal cannot be reached. `output` may hold a polite end of the session, to be sent before the connection
    /// is closed.
    pub fn advance(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<ClientProgress, ProtocolError> {
        loop {
            let outcome = match self.open {
                None => {
                    if !self.take_greeting(input, output)? {
                        return Ok(ClientProgress::NeedInput);
                    }
                    None
                }
                Some(OptionCode::EXPORT_NAME) => match self.take_export_name_answer(input)? {
                    None => return Ok(ClientProgress::NeedInput),
                    outcome => outcome,
                },
                Some(OptionCode::STARTTLS) => {
                    let Some((reply, data)) = take_reply(OptionCode::STARTTLS, input)? else {
                        return Ok(ClientProgress::NeedInput);
                    };
                    take_tls_answer(reply, &data, input, output)?;
                    return Ok(ClientProgress::StartTls);
                }
                Some(option) => {
                    let Some((reply, data)) = take_reply(option, input)? else {
                        return Ok(ClientProgress::NeedInput);
                    };
                    self.take_reply(option, reply, &data, output)?
                }
            };
            if let Some(outcome) = outcome {
                return Ok(ClientProgress::Done(outcome));
            }
        }
    }

    /// Whether the greeting was whole, and taken.
    fn take_greeting(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<bool, ProtocolError> {
        for (at, magics) in [(0, &[INIT_MAGIC][..]), (8, &[OPTION_MAGIC, OLDSTYLE_MAGIC])] {
            let Some(found) = input.get(at..).and_then(<[u8]>::first_chunk) else {
                return Ok(false);
            };
            let found = u64::from_be_bytes(*found);
            if !magics.contains(&found) {
                return Err(DecodeError::BadMagic { found }.into());
            }
            if found == OLDSTYLE_MAGIC {
                return Err(PeerIncompatible::Oldstyle.into());
            }
        }
        if input.len() < 18 {
            return Ok(false);
        }
        input.advance(16);
        let server = HandshakeFlags::from_wire(input.get_u16());
        let fixed = server.contains(HandshakeFlags::FIXED_NEWSTYLE);
        self.no_zeroes = server.contains(HandshakeFlags::NO_ZEROES);
        let mut flags = ClientFlags::NONE;
        if fixed {
            flags |= ClientFlags::FIXED_NEWSTYLE;
        }
        if self.no_zeroes {
            flags |= ClientFlags::NO_ZEROES;
        }
        if !fixed && !self.tls_awaited && !matches!(self.goal, Goal::Transmission { .. }) {
            return Err(PeerIncompatible::NotFixedNewstyle.into());
        }
        if !fixed && self.tls_awaited {
            return Err(PeerIncompatible::NoTls.into());
        }
        output.put_u32(flags.to_wire());
        match self.tls_awaited {
            true => self.send(OptionCode::STARTTLS, output),
            false if !fixed => self.send(OptionCode::EXPORT_NAME, output),
            false => self.send_first(output)?,
        }
        Ok(true)
    }

    /// Sends the first option that is about the goal.
    fn send_first(&mut self, output: &mut BytesMut) -> Result<(), ProtocolError> {
        match self.goal {
            Goal::ListExports => self.send(OptionCode::LIST, output),
            _ => match self.highest {
                HeaderStyle::Extended => self.send(OptionCode::EXTENDED_HEADERS, output),
                HeaderStyle::Structured => self.send(OptionCode::STRUCTURED_REPLY, output),
                HeaderStyle::Simple => self.send_towards_goal(output)?,
            },
        }
        Ok(())
    }

    fn send(&mut self, option: OptionCode, output: &mut BytesMut) {
        let mut data = BytesMut::new();
        match (&self.goal, option) {
            (Goal::Transmission { export, .. }, OptionCode::EXPORT_NAME) => {
                data.put_slice(export.as_str().as_bytes());
            }
            (Goal::Transmission { export, .. }, OptionCode::GO) => InfoRequest {
                name: export.clone(),
                infos: vec![InfoCode::NAME, InfoCode::DESCRIPTION, InfoCode::BLOCK_SIZE],
            }
            .encode(&mut data),
            (Goal::Transmission { export, contexts }, OptionCode::SET_META_CONTEXT) => ContextRequest {
                export: export.clone(),
                queries: contexts.clone(),
            }
            .encode(&mut data),
            (Goal::ListContexts { export, queries }, OptionCode::LIST_META_CONTEXT) => ContextRequest {
                export: export.clone(),
                queries: queries.clone(),
            }
            .encode(&mut data),
            _ => {}
        }
        encode_option(option, &data, output);
        self.collected = Collected::default();
        self.open = Some(option);
    }

    /// Sends what follows when the style of headers is settled.
    fn send_towards_goal(&mut self, output: &mut BytesMut) -> Result<(), ProtocolError> {
        let simple = self.style == HeaderStyle::Simple;
        match &self.goal {
            Goal::ListContexts { .. } if simple => {
                leave(output);
                return Err(PeerIncompatible::NoContexts.into());
            }
            Goal::ListContexts { .. } => self.send(OptionCode::LIST_META_CONTEXT, output),
            Goal::Transmission { contexts, .. } if !simple && !contexts.is_empty() => {
                self.send(OptionCode::SET_META_CONTEXT, output);
            }
            Goal::Transmission { .. } => self.send(OptionCode::GO, output),
            Goal::ListExports => self.send(OptionCode::LIST, output),
        }
        Ok(())
    }

    fn take_reply(
        &mut self,
        option: OptionCode,
        reply: OptionReplyCode,
        data: &[u8],
        output: &mut BytesMut,
    ) -> Result<Option<Outcome>, ProtocolError> {
        if reply.is_error() {
            self.take_refusal(option, reply, data, output)?;
            return Ok(None);
        }
        if reply != OptionReplyCode::ACK {
            self.collected.take(option, reply, data)?;
            return Ok(None);
        }
        if !data.is_empty() {
            return Err(PeerMisbehaved::AckWithData(option).into());
        }
        let collected = std::mem::take(&mut self.collected);
        match option {
            OptionCode::EXTENDED_HEADERS => self.style = HeaderStyle::Extended,
            OptionCode::STRUCTURED_REPLY => self.style = HeaderStyle::Structured,
            OptionCode::SET_META_CONTEXT => {
                self.selected = collected.selected(self.goal_contexts())?;
                self.send(OptionCode::GO, output);
                return Ok(None);
            }
            OptionCode::GO => {
                let export = collected.export(self.goal_export())?;
                return self.enter(export).map(Some);
            }
            OptionCode::LIST => {
                leave(output);
                return Ok(Some(Outcome::Exports(collected.exports)));
            }
            _ => {
                leave(output);
                let names = collected.contexts.into_iter().map(|context| context.name);
                return Ok(Some(Outcome::Contexts(names.collect())));
            }
        }
        self.send_towards_goal(output)?;
        Ok(None)
    }

    /// A refused option: a way around it, or the end.
    fn take_refusal(
        &mut self,
        option: OptionCode,
        reply: OptionReplyCode,
        data: &[u8],
        output: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        let unsupported = reply == OptionReplyCode::ERR_UNSUP;
        match option {
            _ if reply == OptionReplyCode::ERR_TLS_REQD => {
                leave(output);
                return Err(PeerIncompatible::TlsRequired.into());
            }
            // "If the client receives NBD_REP_ERR_SHUTDOWN it MUST initiate a soft disconnect."
            _ if reply == OptionReplyCode::ERR_SHUTDOWN => {}
            OptionCode::EXTENDED_HEADERS => {
                self.send(OptionCode::STRUCTURED_REPLY, output);
                return Ok(());
            }
            OptionCode::STRUCTURED_REPLY => return self.send_towards_goal(output),
            OptionCode::SET_META_CONTEXT if unsupported => {
                self.send(OptionCode::GO, output);
                return Ok(());
            }
            OptionCode::GO if unsupported && self.style == HeaderStyle::Extended => {
                return Err(PeerMisbehaved::NoGoAfterExtendedHeaders.into());
            }
            OptionCode::GO if unsupported => {
                self.send(OptionCode::EXPORT_NAME, output);
                return Ok(());
            }
            _ => {}
        }
        leave(output);
        Err(OptionRefused {
            option,
            reply,
            text: ErrorText::from_wire(data),
        }
        .into())
    }

    fn take_export_name_answer(&mut self, input: &mut BytesMut) -> Result<Option<Outcome>, ProtocolError> {
        let zeroes = if self.no_zeroes { 0 } else { EXPORT_NAME_ZEROES };
        if input.len() < 10 + zeroes {
            return Ok(None);
        }
        let (size, flags) = (input.get_u64(), TransmissionFlags::from_wire(input.get_u16()));
        if input.split_to(zeroes).iter().any(|byte| *byte != 0) {
            return Err(PeerMisbehaved::PaddingNotZero.into());
        }
        self.enter(ExportInfo {
            name: self.goal_export().clone(),
            size,
            flags,
            block: BlockSizes::default(),
            description: String::new(),
        })
        .map(Some)
    }

    fn enter(&mut self, mut export: ExportInfo) -> Result<Outcome, ProtocolError> {
        if export.size > MAX_EXPORT_SIZE {
            return Err(PeerIncompatible::ExportTooLarge(export.size).into());
        }
        if !export.flags.contains(TransmissionFlags::HAS_FLAGS) {
            return Err(PeerMisbehaved::NoTransmissionFlags.into());
        }
        // A flag that the server must not set in this style says nothing.
        if self.style == HeaderStyle::Simple {
            export.flags = export.flags.without(TransmissionFlags::SEND_DF);
        }
        if self.style != HeaderStyle::Extended {
            export.flags = export.flags.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        Ok(Outcome::Transmission(Box::new(Negotiated {
            requested: self.goal_export().clone(),
            export,
            style: self.style,
            contexts: std::mem::take(&mut self.selected),
        })))
    }

    fn goal_export(&self) -> &ExportName {
        match &self.goal {
            Goal::Transmission { export, .. } | Goal::ListContexts { export, .. } => export,
            Goal::ListExports => unreachable!("a list enters no export"),
        }
    }

    fn goal_contexts(&self) -> &[ContextName] {
        match &self.goal {
            Goal::Transmission { contexts, .. } => contexts,
            Goal::ListExports | Goal::ListContexts { .. } => &[],
        }
    }
}

/// Takes the answer to STARTTLS. Anything but a bare ACK is the end: there is no way around TLS.
fn take_tls_answer(
    reply: OptionReplyCode,
    data: &[u8],
    behind: &[u8],
    output: &mut BytesMut,
) -> Result<(), ProtocolError> {
    let option = OptionCode::STARTTLS;
    if reply.is_error() {
        leave(output);
        let text = ErrorText::from_wire(data);
        return Err(OptionRefused { option, reply, text }.into());
    }
    if reply != OptionReplyCode::ACK {
        return Err(PeerMisbehaved::UnexpectedOptionReply { option, reply }.into());
    }
    if !data.is_empty() {
        return Err(PeerMisbehaved::AckWithData(option).into());
    }
    // In TLS the client speaks first. Whoever sent this sent it in the clear.
    if !behind.is_empty() {
        return Err(PeerMisbehaved::BytesBeforeTls.into());
    }
    Ok(())
}

/// Ends the session politely. The answer need not be awaited.
fn leave(output: &mut BytesMut) {
    encode_option(OptionCode::ABORT, &[], output);
}

/// The next reply to `option` in `input`, when it is whole.
fn take_reply(
    option: OptionCode,
    input: &mut BytesMut,
) -> Result<Option<(OptionReplyCode, Bytes)>, ProtocolError> {
    let Some(header) = OptionReplyHeader::decode(input)? else {
        return Ok(None);
    };
    if header.option != option {
        return Err(PeerMisbehaved::WrongOption {
            expected: option,
            found: header.option,
        }
        .into());
    }
    if header.length > MAX_OPTION_REPLY {
        return Err(PeerMisbehaved::OptionReplyTooLong {
            option,
            length: header.length,
        }
        .into());
    }
    let whole = OPTION_REPLY_HEADER_LEN + header.length as usize;
    if input.len() < whole {
        return Ok(None);
    }
    let mut message = input.split_to(whole).freeze();
    message.advance(OPTION_REPLY_HEADER_LEN);
    Ok(Some((header.reply, message)))
}
