//! A server's stream against our client: its answers to options, and its replies to requests.

use bytes::{BufMut, Bytes, BytesMut};

use super::oracle::{Asked, scripted_replies};
use super::script::{SIZE, Script};
use super::shelf::session;
use crate::proto::constants::{OptionCode, OptionReplyCode};
use crate::proto::handshake::{ClientHandshake, ClientProgress, Goal, Outcome};
use crate::proto::limits::{MAX_DESCRIPTORS, MAX_EXPORT_SIZE, MAX_LISTED, MAX_OPTION_REPLY};
use crate::proto::option::encode_option_reply;
use crate::proto::transmission::{ClientTransmission, Finished};
use crate::proto::{
    Command, ContextName, ExportName, HeaderStyle, Negotiated, ProtocolError, TransmissionFlags,
};

/// Longest READ of a script: more would only take time.
pub(super) const READ_MAX: u64 = 1 << 10;

/// A whole server: handshake and transmission, or transmission in a session that is given.
pub(super) fn client(input: &[u8]) {
    let mut script = Script::of(input);
    let how = script.byte();
    let piece = usize::from(script.byte()) + 1;
    let scripted = how & 2 == 0;
    if how & 1 == 1 {
        let session = session(script.style(), script.chance());
        transmit(&session, script, scripted, piece);
        return;
    }
    let goal = match script.choice(4) {
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
    };
    let highest = script.style();
    if scripted {
        let stream = scripted_answers(&mut script, &goal, highest);
        if let Some((session, _)) = shake_hands_twice(&goal, highest, &stream, piece) {
            transmit(&session, script, true, piece);
        }
    } else if let Some((session, rest)) = shake_hands_twice(&goal, highest, script.rest(), piece) {
        transmit(&session, Script::of(&rest), false, piece);
    }
}

/// How a handshake ended, with what was left of its input.
type Ended = (Result<ClientProgress, ProtocolError>, BytesMut);

fn shake_hands(goal: &Goal, highest: HeaderStyle, stream: &[u8], piece: usize) -> Ended {
    let mut client = ClientHandshake::new(goal.clone(), highest);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut end = Ok(ClientProgress::NeedInput);
    let mut pieces = stream.chunks(piece);
    for bytes in pieces.by_ref() {
        input.extend_from_slice(bytes);
        end = client.advance(&mut input, &mut output);
        if end != Ok(ClientProgress::NeedInput) {
            break;
        }
        assert!(
            input.len() <= MAX_OPTION_REPLY as usize + 20,
            "what is waited for has a limit"
        );
    }
    pieces.for_each(|bytes| input.extend_from_slice(bytes));
    (end, input)
}

/// The session that begins, if one does, and the bytes behind the handshake.
fn shake_hands_twice(
    goal: &Goal,
    highest: HeaderStyle,
    stream: &[u8],
    piece: usize,
) -> Option<(Negotiated, BytesMut)> {
    let whole = shake_hands(goal, highest, stream, usize::MAX);
    let (end, rest) = shake_hands(goal, highest, stream, piece);
    assert_eq!(whole.0, end, "the cuts of the network show");
    match end {
        Ok(ClientProgress::Done(Outcome::Transmission(session))) => {
            assert_eq!(whole.1, rest, "the cuts of the network show");
            check_session(&session, goal, highest);
            Some((*session, rest))
        }
        Ok(ClientProgress::Done(Outcome::Exports(exports))) => {
            assert!(*goal == Goal::ListExports && exports.len() <= MAX_LISTED);
            None
        }
        Ok(ClientProgress::Done(Outcome::Contexts(names))) => {
            assert!(matches!(goal, Goal::ListContexts { .. }) && names.len() <= MAX_LISTED);
            None
        }
        Ok(ClientProgress::NeedInput | ClientProgress::StartTls) | Err(_) => None,
    }
}

fn check_session(session: &Negotiated, goal: &Goal, highest: HeaderStyle) {
    let Goal::Transmission { contexts, .. } = goal else {
        panic!("a session was not the goal");
    };
    assert!(session.style <= highest && session.export.size <= MAX_EXPORT_SIZE);
    assert!(session.offers(TransmissionFlags::HAS_FLAGS) && session.export.block.are_legal());
    assert!(session.style != HeaderStyle::Simple || session.contexts.is_empty());
    assert!(
        session.style == HeaderStyle::Extended || !session.offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    );
    for (n, context) in session.contexts.iter().enumerate() {
        assert!(
            contexts.contains(&context.name),
            "a context that was not asked for"
        );
        let twice =
            |other: &crate::proto::SelectedContext| other.id == context.id || other.name == context.name;
        assert!(!session.contexts[..n].iter().any(twice), "a context twice");
    }
}

/// Answers to the options of a client, one after another: each names the option that is open, or nearly always.
fn scripted_answers(script: &mut Script<'_>, goal: &Goal, highest: HeaderStyle) -> BytesMut {
    let mut client = ClientHandshake::new(goal.clone(), highest);
    let mut stream = BytesMut::from(&b"NBDMAGICIHAVEOPT"[..]);
    stream.put_u16(u16::from(!script.byte() & 3));
    let (mut input, mut output) = (stream.clone(), BytesMut::new());
    while client.advance(&mut input, &mut output) == Ok(ClientProgress::NeedInput) {
        let Some(mut option) = client.open_option().filter(|_| !script.is_at_end()) else {
            break;
        };
        let mut answer = BytesMut::new();
        if option == OptionCode::EXPORT_NAME {
            answer.put_u64(script.number());
            answer.put_u16(script.word());
            answer.put_bytes(script.byte() / 128, 124);
        } else {
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
        }
        stream.put_slice(&answer);
        input.put_slice(&answer);
    }
    stream
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

fn transmit(session: &Negotiated, mut script: Script<'_>, scripted: bool, piece: usize) {
    let asked: Vec<Asked> = if scripted {
        (0..=script.choice(4))
            .filter_map(|_| Asked::scripted(&mut script, session))
            .collect()
    } else {
        Asked::some_of_each(session)
    };
    let commands: Vec<Command> = asked.iter().map(|asked| asked.command.clone()).collect();
    let (stream, expected) = if scripted {
        let (stream, expected) = scripted_replies(script, session, asked);
        (stream, Some(expected))
    } else {
        (script.rest().into(), None)
    };
    let whole = replies(session, &commands, &stream, usize::MAX);
    assert_eq!(
        whole,
        replies(session, &commands, &stream, piece),
        "the cuts of the network show"
    );
    let (finished, end) = whole;
    for (n, one) in finished.iter().enumerate() {
        let again = |other: &Finished| other.cookie == one.cookie;
        assert!(!finished[..n].iter().any(again), "a request finished twice");
        super::oracle::check_shape(one, &commands, session);
    }
    if let Some(expected) = expected {
        expected.check(&finished, end.as_ref());
    }
}

/// What became of requests, and what ended the session.
type Replies = (Vec<Finished>, Option<ProtocolError>);

fn replies(session: &Negotiated, commands: &[Command], stream: &[u8], piece: usize) -> Replies {
    let mut client = ClientTransmission::new(session.clone());
    let mut output = BytesMut::new();
    for command in commands {
        client
            .submit(command, &mut output)
            .expect("held against the session before");
    }
    let (mut input, mut finished) = (BytesMut::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        input.extend_from_slice(bytes);
        loop {
            match client.advance(&mut input) {
                Ok(Some(one)) => finished.push(one),
                Ok(None) => break,
                Err(error) => return (finished, Some(error)),
            }
        }
        assert!(
            input.capacity() <= 2 * (16 * MAX_DESCRIPTORS + stream.len() + (1 << 17)),
            "what is waited for has a limit"
        );
    }
    (finished, None)
}
