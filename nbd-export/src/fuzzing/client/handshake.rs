//! Answers to the options of a client, in the clear and inside TLS.

use bytes::{BufMut, Bytes, BytesMut};

use crate::fuzzing::script::{SIZE, Script};
use crate::proto::constants::{OptionCode, OptionReplyCode};
use crate::proto::handshake::{ClientHandshake, ClientProgress, Goal, Outcome};
use crate::proto::limits::{MAX_EXPORT_SIZE, MAX_LISTED, MAX_OPTION_REPLY};
use crate::proto::option::{OPTION_REPLY_HEADER_LEN, encode_option, encode_option_reply};
use crate::proto::{
    ContextName, ExportName, HeaderStyle, Negotiated, PeerMisbehaved, ProtocolError, SelectedContext,
    TransmissionFlags,
};

/// Bytes of a greeting.
const GREETING_LEN: usize = 18;

/// What a server says to a client, and what that client wants.
pub(super) struct Talk {
    goal: Goal,
    highest: HeaderStyle,
    /// Whether the client wants TLS.
    tls: bool,
    /// In the clear.
    clear: BytesMut,
    /// Inside TLS, if it comes to that.
    inside: BytesMut,
}

/// What clients want.
pub(super) fn goal(choice: usize) -> Goal {
    match choice {
        0 => Goal::ListExports,
        1 => Goal::ListContexts {
            export: ExportName::default(),
            queries: Vec::new(),
        },
        _ => Goal::Transmission {
            export: ExportName::default(),
            contexts: ["base:allocation", "x-volmap:generation"]
                .map(|name| ContextName::new(name).expect("a name"))
                .into(),
        },
    }
}

impl Talk {
    /// The bytes of an input as they are.
    pub(super) fn raw(mut script: Script<'_>, goal: Goal, highest: HeaderStyle, tls: bool) -> Self {
        let in_the_clear = if tls { script.word().into() } else { usize::MAX };
        Self {
            goal,
            highest,
            tls,
            clear: script.bytes(in_the_clear).into(),
            inside: script.rest().into(),
        }
    }

    /// Answers one after another: each names the option that is open, or nearly always.
    pub(super) fn scripted(script: &mut Script<'_>, goal: Goal, highest: HeaderStyle, tls: bool) -> Self {
        let mut talk = Self {
            goal,
            highest,
            tls,
            clear: b"NBDMAGICIHAVEOPT"[..].into(),
            inside: BytesMut::new(),
        };
        talk.clear.put_u16(u16::from(!script.byte() & 3));
        let mut client = talk.client();
        let (mut input, mut output) = (talk.clear.clone(), BytesMut::new());
        let mut is_inside = false;
        loop {
            match client.advance(&mut input, &mut output) {
                Ok(ClientProgress::NeedInput) => {}
                Ok(ClientProgress::StartTls) if !script.is_at_end() => {
                    // Sometimes somebody on the way puts more behind the ACK.
                    if script.byte() == u8::MAX {
                        talk.clear.put_slice(&answer(script, OptionCode::LIST));
                    }
                    is_inside = true;
                    if client.secured(&mut output).is_err() {
                        break;
                    }
                }
                _ => break,
            }
            let Some(option) = client.open_option().filter(|_| !script.is_at_end()) else {
                break;
            };
            let answer = answer(script, option);
            let stream = match is_inside {
                true => &mut talk.inside,
                false => &mut talk.clear,
            };
            stream.put_slice(&answer);
            input.put_slice(&answer);
        }
        talk
    }

    fn client(&self) -> ClientHandshake {
        let client = ClientHandshake::new(self.goal.clone(), self.highest);
        match self.tls {
            true => client.requiring_tls(),
            false => client,
        }
    }

    /// Holds a client to its promises, with the bytes whole and in pieces. The session that begins, if one does, and the bytes
    /// behind the handshake.
    pub(super) fn check(&self, piece: usize) -> Option<(Negotiated, BytesMut)> {
        let whole = self.run(usize::MAX);
        let heard = self.run(piece);
        assert_eq!(whole.end, heard.end, "the cuts of the network show");
        if self.tls {
            whole.check_secrecy();
        }
        if let Some(asked) = &whole.asked_inside {
            self.check_fresh(asked, &whole.end);
        }
        match heard.end {
            Ok(ClientProgress::Done(Outcome::Transmission(session))) => {
                assert_eq!(whole.rest, heard.rest, "the cuts of the network show");
                self.check_session(&session);
                Some((*session, heard.rest))
            }
            Ok(ClientProgress::Done(Outcome::Exports(exports))) => {
                assert!(self.goal == Goal::ListExports && exports.len() <= MAX_LISTED);
                None
            }
            Ok(ClientProgress::Done(Outcome::Contexts(names))) => {
                assert!(matches!(self.goal, Goal::ListContexts { .. }) && names.len() <= MAX_LISTED);
                None
            }
            Ok(ClientProgress::NeedInput | ClientProgress::StartTls) | Err(_) => None,
        }
    }

    fn run(&self, piece: usize) -> Heard {
        let mut client = Client {
            machine: self.client(),
            input: BytesMut::new(),
            output: BytesMut::new(),
        };
        let (mut end, mut rest) = client.feed(&self.clear, piece);
        let (asked, mut asked_inside) = (client.output.split(), None);
        if end == Ok(ClientProgress::StartTls) {
            assert!(client.input.is_empty(), "plaintext is left over for what follows");
            if rest.is_empty() {
                end = client
                    .machine
                    .secured(&mut client.output)
                    .map(|()| ClientProgress::NeedInput);
                if end.is_ok() {
                    (end, rest) = client.feed(&self.inside, piece);
                }
                asked_inside = Some(client.output);
            } else {
                // The server goes on in the clear: to TLS that is no handshake. In one piece it was seen at the ACK.
                end = Err(PeerMisbehaved::BytesBeforeTls.into());
            }
        }
        client.input.extend_from_slice(rest);
        Heard {
            asked,
            asked_inside,
            end,
            rest: client.input,
        }
    }

    /// What was said in the clear changes nothing inside TLS: a client that knows nothing of it asks and gets the same.
    fn check_fresh(&self, asked: &[u8], end: &Ended) {
        let unheard_of = Talk {
            goal: self.goal.clone(),
            highest: self.highest,
            tls: false,
            clear: [&self.clear[..GREETING_LEN], &self.inside].concat()[..].into(),
            inside: BytesMut::new(),
        };
        let fresh = unheard_of.run(usize::MAX);
        assert_eq!(&fresh.asked[4..], asked, "something was not forgotten");
        assert_eq!(&fresh.end, end, "something was not forgotten");
    }

    fn check_session(&self, session: &Negotiated) {
        let Goal::Transmission { contexts, .. } = &self.goal else {
            panic!("a session was not the goal");
        };
        assert!(session.style <= self.highest && session.export.size <= MAX_EXPORT_SIZE);
        assert!(session.offers(TransmissionFlags::HAS_FLAGS) && session.export.block.are_legal());
        assert!(session.style != HeaderStyle::Simple || session.contexts.is_empty());
        assert!(
            session.style == HeaderStyle::Extended
                || !session.offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
        );
        for (n, context) in session.contexts.iter().enumerate() {
            assert!(
                contexts.contains(&context.name),
                "a context that was not asked for"
            );
            let twice = |other: &SelectedContext| other.id == context.id || other.name == context.name;
            assert!(!session.contexts[..n].iter().any(twice), "a context twice");
        }
    }
}

/// How a handshake ended.
type Ended = Result<ClientProgress, ProtocolError>;

/// A client that is spoken to.
struct Client {
    machine: ClientHandshake,
    input: BytesMut,
    output: BytesMut,
}

impl Client {
    /// Gives it bytes for as long as it waits for more; how it stands then, and what it did not get.
    fn feed<'a>(&mut self, mut bytes: &'a [u8], piece: usize) -> (Ended, &'a [u8]) {
        while !bytes.is_empty() {
            let (next, later) = bytes.split_at(piece.min(bytes.len()));
            self.input.extend_from_slice(next);
            bytes = later;
            let stands = self.machine.advance(&mut self.input, &mut self.output);
            if stands != Ok(ClientProgress::NeedInput) {
                return (stands, bytes);
            }
            assert!(
                self.input.len() <= MAX_OPTION_REPLY as usize + OPTION_REPLY_HEADER_LEN,
                "what is waited for has a limit"
            );
        }
        (Ok(ClientProgress::NeedInput), bytes)
    }
}

/// What a client asked, and how its handshake ended.
struct Heard {
    /// In the clear.
    asked: BytesMut,
    /// `None` where it did not come to TLS.
    asked_inside: Option<BytesMut>,
    end: Ended,
    /// Bytes behind the handshake.
    rest: BytesMut,
}

impl Heard {
    /// A client that wants TLS says nothing in the clear but that, and a goodbye; and gets nothing without it.
    fn check_secrecy(&self) {
        let mut allowed = BytesMut::new();
        encode_option(OptionCode::STARTTLS, &[], &mut allowed);
        encode_option(OptionCode::ABORT, &[], &mut allowed);
        // Behind the client's flags.
        let asked = self.asked.get(4..).unwrap_or_default();
        assert!(allowed.starts_with(asked), "{asked:x?} in the clear");
        assert!(
            self.asked_inside.is_some() || !matches!(self.end, Ok(ClientProgress::Done(_))),
            "a goal is reached without TLS"
        );
    }
}

/// The answer to an option.
fn answer(script: &mut Script<'_>, mut option: OptionCode) -> BytesMut {
    let mut answer = BytesMut::new();
    if option == OptionCode::EXPORT_NAME {
        answer.put_u64(script.number());
        answer.put_u16(script.word());
        answer.put_bytes(script.byte() / 128, 124);
        return answer;
    }
    let kind = script.byte();
    let data = answer_data(script, kind);
    if kind == u8::MAX {
        option = OptionCode(script.byte().into());
    }
    let reply = match kind % 8 {
        0..=2 => OptionReplyCode::ACK,
        3 => OptionReplyCode::SERVER,
        4 => OptionReplyCode::INFO,
        5 => OptionReplyCode::META_CONTEXT,
        6 => OptionReplyCode(1 << 31 | u32::from(script.byte() % 12)),
        _ => OptionReplyCode(script.byte().into()),
    };
    encode_option_reply(option, reply, &data, &mut answer);
    answer
}

fn answer_data(script: &mut Script<'_>, kind: u8) -> Bytes {
    let mut data = BytesMut::new();
    match kind % 8 {
        3 => {
            let length = script.byte();
            data.put_u32(length.into());
            data.put_slice(script.bytes(usize::from(length) + usize::from(kind >> 7)));
        }
        4 => {
            let info = script.choice(6);
            data.put_u16(u16::try_from(info).unwrap_or(0));
            match info {
                0 => {
                    data.put_u64(if script.chance() { SIZE } else { script.number() });
                    data.put_u16(script.word() | 1);
                }
                3 => (0..3).for_each(|_| data.put_u32(1 << (script.byte() % 32))),
                _ => {
                    let length = script.byte();
                    data.put_slice(script.bytes(length.into()));
                }
            }
        }
        5 => {
            data.put_u32(script.byte().into());
            let names = ["base:allocation", "x-volmap:generation", "x-volmap:other", "none"];
            data.put_slice(names[script.choice(4)].as_bytes());
        }
        0..=2 => {}
        _ => {
            let length = script.byte();
            data.put_slice(script.bytes(length.into()));
        }
    }
    data.freeze()
}
