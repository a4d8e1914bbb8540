//! Flags and options: in the clear, inside TLS, and to a server that is ending.

use bytes::{BufMut, BytesMut};

use super::transmission::{Requests, transmit};
use crate::fuzzing::script::Script;
use crate::fuzzing::shelf::{Shelf, Veil, names};
use crate::proto::constants::{
    EXPORT_NAME_ZEROES, InfoCode, OPTION_REPLY_MAGIC, OptionCode, OptionReplyCode,
};
use crate::proto::handshake::{Progress, ServerHandshake};
use crate::proto::limits::{MAX_OPTION_DATA, MAX_STRING};
use crate::proto::option::{ContextRequest, InfoRequest, OPTION_REPLY_HEADER_LEN, encode_option};
use crate::proto::{
    ContextName, ExportName, HeaderStyle, Negotiated, PeerMisbehaved, ProtocolError, SelectedContext,
    TransmissionFlags,
};

/// What a client sends.
pub(super) struct Talk {
    /// Whether the server wants TLS.
    tls: bool,
    /// In the clear.
    clear: BytesMut,
    /// Inside TLS, if it comes to that.
    inside: BytesMut,
    /// Bytes after which the server begins to end.
    ends_after: Option<usize>,
}

impl Talk {
    /// The bytes of an input as they are.
    pub(super) fn raw(mut script: Script<'_>, tls: bool, ends: bool) -> Self {
        let ends_after = ends.then(|| script.word().into());
        let in_the_clear = if tls { script.word().into() } else { usize::MAX };
        Self {
            tls,
            clear: script.bytes(in_the_clear).into(),
            inside: script.rest().into(),
            ends_after,
        }
    }

    /// Well-framed options that an input describes.
    pub(super) fn scripted(mut script: Script<'_>, tls: bool, ends: bool) -> Self {
        let ends_after = ends.then(|| script.word().into());
        let mut clear = BytesMut::new();
        clear.put_u32(u32::from(script.byte() & 7));
        let mut inside = None;
        while !script.is_at_end() {
            let code = script.byte();
            if tls && inside.is_none() && (0xe0..u8::MAX).contains(&code) {
                encode_option(OptionCode::STARTTLS, &[], &mut clear);
                // Sometimes with more behind it, which somebody on the way has put there.
                if code & 7 != 0 {
                    inside = Some(BytesMut::new());
                }
                continue;
            }
            let out = inside.as_mut().unwrap_or(&mut clear);
            if code == u8::MAX {
                // What is not framed: transmission, for one.
                out.put_slice(script.rest());
                break;
            }
            scripted_option(&mut script, OptionCode(u32::from(code % 14)), out);
        }
        Self {
            tls,
            clear,
            inside: inside.unwrap_or_default(),
            ends_after,
        }
    }

    /// Holds a server to its promises: with the bytes whole, and in pieces.
    pub(super) fn check(&self, piece: usize) {
        let whole = self.run(usize::MAX);
        assert_eq!(whole, self.run(piece), "the cuts of the network show");
        whole.check(self);
        if let (Some(inside), None) = (&whole.inside, self.ends_after) {
            self.check_fresh(inside, &whole.end);
        }
    }

    fn run(&self, piece: usize) -> Heard {
        let mut server = Server::of(self);
        let (mut end, mut rest) = server.feed(&self.clear, piece);
        let (mut clear, mut inside) = (server.answers.split(), None);
        if end == Ok(Progress::StartTls) {
            assert!(server.input.is_empty(), "plaintext is left over for what follows");
            if rest.is_empty() {
                server.secure();
                (end, rest) = server.feed(&self.inside, piece);
                inside = Some(server.answers.split());
            } else {
                // The client goes on in the clear: to TLS that is no handshake. In one piece it was seen before the ACK.
                clear.truncate(clear.len() - OPTION_REPLY_HEADER_LEN);
                end = Err(PeerMisbehaved::BytesBeforeTls.into());
            }
        }
        let mut requests = (Vec::new(), None);
        if let Ok(Progress::Transmission(session)) = &end {
            assert!(!server.ended, "a session begins while the server ends");
            check_session(session);
            server.input.extend_from_slice(rest);
            requests = transmit(&server.input, session, piece);
        }
        Heard {
            clear,
            inside,
            end,
            requests,
        }
    }

    /// What was said in the clear changes nothing inside TLS: a server that knows nothing of it says the same. Only STARTTLS
    /// itself it refuses for another reason.
    fn check_fresh(&self, inside: &[u8], end: &Ended) {
        let unheard_of = Talk {
            tls: false,
            clear: [&self.clear[..4], &self.inside].concat()[..].into(),
            inside: BytesMut::new(),
            ends_after: None,
        };
        let fresh = unheard_of.run(usize::MAX);
        assert_eq!(
            said_beside_starttls(&fresh.clear),
            said_beside_starttls(inside),
            "something was not forgotten"
        );
        assert_eq!(&fresh.end, end, "something was not forgotten");
    }
}

fn scripted_option(script: &mut Script<'_>, option: OptionCode, out: &mut BytesMut) {
    let mut data = BytesMut::new();
    let name = ExportName::new(&names()[script.choice(7)]).expect("a name");
    match script.choice(4) {
        0 => {}
        1 => {
            let count = script.byte();
            data.put_slice(script.bytes(count.into()));
        }
        2 => {
            let infos = (0..script.choice(6)).map(|_| InfoCode(script.byte().into()));
            let infos = infos.collect();
            InfoRequest { name, infos }.encode(&mut data);
        }
        _ => {
            let queries = (0..script.choice(4)).map(|_| {
                let all = [
                    "base:",
                    "base:allocation",
                    "x-volmap:",
                    "x-volmap:generation",
                    "x-none:y",
                ];
                ContextName::new(all[script.choice(5)]).expect("a name")
            });
            let queries = queries.collect();
            ContextRequest {
                export: name,
                queries,
            }
            .encode(&mut data);
        }
    }
    encode_option(option, &data, out);
    if script.byte() == 0x80 {
        // A length that lies.
        let at = out.len() - data.len() - 4;
        let [.., a, b, c, d] = script.number().to_be_bytes();
        out[at..at + 4].copy_from_slice(&[a, b, c, d]);
    }
}

/// How a handshake ended.
type Ended = Result<Progress, ProtocolError>;

/// A server that is spoken to.
struct Server {
    machine: ServerHandshake,
    input: BytesMut,
    answers: BytesMut,
    veil: Veil,
    /// Bytes that it was given.
    fed: usize,
    ends_after: Option<usize>,
    ended: bool,
}

impl Server {
    fn of(talk: &Talk) -> Self {
        let mut answers = BytesMut::new();
        let mut machine = ServerHandshake::start(&mut answers);
        answers.clear();
        if talk.tls {
            machine = machine.requiring_tls();
        }
        Self {
            machine,
            input: BytesMut::new(),
            answers,
            veil: if talk.tls {
                Veil::Drawn
            } else {
                Veil::Lifted(Shelf)
            },
            fed: 0,
            ends_after: talk.ends_after,
            ended: false,
        }
    }

    fn secure(&mut self) {
        self.machine.secured();
        if !self.ended {
            self.veil = Veil::Lifted(Shelf);
        }
    }

    /// Gives it bytes for as long as it waits for more; how it stands then, and what it did not get.
    fn feed<'a>(&mut self, mut bytes: &'a [u8], piece: usize) -> (Ended, &'a [u8]) {
        loop {
            if self.ends_after == Some(self.fed) {
                self.machine.shut_down();
                (self.ended, self.veil) = (true, Veil::Drawn);
            }
            if bytes.is_empty() {
                return (Ok(Progress::NeedInput), bytes);
            }
            let until_its_end = match self.ends_after {
                Some(at) if at > self.fed => at - self.fed,
                _ => usize::MAX,
            };
            let (next, later) = bytes.split_at(piece.min(until_its_end).min(bytes.len()));
            self.input.extend_from_slice(next);
            (self.fed, bytes) = (self.fed + next.len(), later);
            let stands = loop {
                let before = self.answers.len();
                let stands = self
                    .machine
                    .advance(&mut self.input, &mut self.answers, &self.veil);
                if self.ended {
                    check_shut_down(&self.answers[before..]);
                }
                if stands != Ok(Progress::Continue) {
                    break stands;
                }
            };
            if stands != Ok(Progress::NeedInput) {
                return (stands, bytes);
            }
            assert!(
                self.input.len() <= MAX_OPTION_DATA as usize + 16,
                "what is waited for has a limit"
            );
        }
    }
}

/// What a client heard and how it ended.
#[derive(PartialEq, Debug)]
struct Heard {
    clear: BytesMut,
    /// `None` where it did not come to TLS.
    inside: Option<BytesMut>,
    end: Ended,
    requests: Requests,
}

impl Heard {
    /// Every answer is a whole reply to an option, and its texts are what the specification wants of strings; before TLS
    /// nothing is told but that it is wanted.
    fn check(&self, talk: &Talk) {
        if talk.tls {
            let (told, rest) = replies(&self.clear);
            assert!(rest.is_empty(), "{rest:?}");
            for Reply { option, reply, .. } in told {
                let allowed: &[_] = match option {
                    OptionCode::ABORT => &[OptionReplyCode::ACK],
                    OptionCode::STARTTLS => &[OptionReplyCode::ACK, OptionReplyCode::ERR_INVALID],
                    _ => &[OptionReplyCode::ERR_TLS_REQD],
                };
                let ends = talk.ends_after.is_some() && reply == OptionReplyCode::ERR_SHUTDOWN;
                assert!(allowed.contains(&reply) || ends, "{option} is told {reply:?}");
            }
        }
        let entered = matches!(self.end, Ok(Progress::Transmission(_)));
        let answers = self.inside.as_ref().unwrap_or(&self.clear);
        let (_, rest) = replies(answers);
        // The answer to EXPORT_NAME has no header.
        let bare = [0, 10, 10 + EXPORT_NAME_ZEROES];
        assert!(
            rest.is_empty() || (entered && bare.contains(&rest.len())),
            "{rest:?}"
        );
    }
}

/// A reply to an option.
#[derive(PartialEq, Debug)]
struct Reply<'a> {
    option: OptionCode,
    reply: OptionReplyCode,
    data: &'a [u8],
}

/// The replies at the start of what was heard, and what follows them.
fn replies(mut answers: &[u8]) -> (Vec<Reply<'_>>, &[u8]) {
    let mut replies = Vec::new();
    while let Some(header) = answers.first_chunk::<OPTION_REPLY_HEADER_LEN>() {
        if header[..8] != OPTION_REPLY_MAGIC.to_be_bytes() {
            break;
        }
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (reply, length) = (OptionReplyCode(word(12)), word(16) as usize);
        let (whole, rest) = answers
            .split_at_checked(OPTION_REPLY_HEADER_LEN + length)
            .expect("a whole reply");
        let data = &whole[OPTION_REPLY_HEADER_LEN..];
        if reply.is_error() {
            assert!(!data.is_empty() && length <= MAX_STRING && !data.contains(&0));
            std::str::from_utf8(data).expect("a text in UTF-8");
        }
        assert!(reply != OptionReplyCode::ACK || length == 0);
        replies.push(Reply {
            option: OptionCode(word(8)),
            reply,
            data,
        });
        answers = rest;
    }
    (replies, answers)
}

/// The same without those to STARTTLS.
fn said_beside_starttls(answers: &[u8]) -> (Vec<Reply<'_>>, &[u8]) {
    let (mut replies, rest) = replies(answers);
    replies.retain(|reply| reply.option != OptionCode::STARTTLS);
    (replies, rest)
}

/// A server that ends says nothing else, and ACK to those who leave.
fn check_shut_down(answers: &[u8]) {
    let (replies, rest) = replies(answers);
    assert!(rest.is_empty(), "{rest:?}");
    for Reply { option, reply, .. } in replies {
        let leaves = option == OptionCode::ABORT;
        assert_eq!(reply == OptionReplyCode::ACK, leaves, "{option}");
        assert_eq!(reply == OptionReplyCode::ERR_SHUTDOWN, !leaves, "{option}");
    }
}

fn check_session(session: &Negotiated) {
    let offers = |flag| session.offers(flag);
    assert!(offers(TransmissionFlags::HAS_FLAGS));
    assert!(session.style != HeaderStyle::Simple || session.contexts.is_empty());
    assert!(session.style != HeaderStyle::Simple || !offers(TransmissionFlags::SEND_DF));
    assert!(session.style == HeaderStyle::Extended || !offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    for (n, context) in session.contexts.iter().enumerate() {
        let twice = |other: &SelectedContext| other.id == context.id || other.name == context.name;
        assert!(!session.contexts[..n].iter().any(twice), "a context twice");
    }
}
