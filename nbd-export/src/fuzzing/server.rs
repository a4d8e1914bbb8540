//! A client's stream against our server: its options, and its requests.

use bytes::{BufMut, Bytes, BytesMut};

use super::script::Script;
use super::shelf::{Shelf, names, session};
use crate::proto::constants::{
    CommandCode, EXPORT_NAME_ZEROES, InfoCode, OPTION_REPLY_MAGIC, OptionCode, OptionReplyCode,
};
use crate::proto::flags::CommandFlags;
use crate::proto::handshake::{Progress, ServerHandshake};
use crate::proto::limits::{MAX_CONTEXTS, MAX_OPTION_DATA, MAX_PAYLOAD, MAX_STRING};
use crate::proto::option::{ContextRequest, InfoRequest, encode_option};
use crate::proto::request::{Cookie, RequestHeader};
use crate::proto::transmission::{Incoming, RequestDecoder, RuleBroken};
use crate::proto::{
    Command, ContextName, ExportName, HeaderStyle, Negotiated, ProtocolError, ReplyTo, TransmissionFlags,
};

/// A whole client: handshake and transmission, or transmission in a session that is given.
pub(super) fn server(input: &[u8]) {
    let mut script = Script::of(input);
    let how = script.byte();
    let piece = usize::from(script.byte()) + 1;
    if how & 1 == 0 {
        let stream = if how & 2 == 0 {
            scripted_options(script)
        } else {
            script.rest().into()
        };
        let whole = shake_hands(&stream, usize::MAX);
        assert_eq!(whole, shake_hands(&stream, piece), "the cuts of the network show");
        check_answers(&whole);
    } else {
        let session = session(script.style(), script.chance());
        let stream = if how & 2 == 0 {
            scripted_requests(script, &session)
        } else {
            script.rest().into()
        };
        let whole = transmit(&stream, &session, usize::MAX);
        assert_eq!(
            whole,
            transmit(&stream, &session, piece),
            "the cuts of the network show"
        );
    }
}

/// What a client heard and how it ended.
#[derive(PartialEq, Debug)]
struct Heard {
    answers: BytesMut,
    end: Result<Progress, ProtocolError>,
    requests: Requests,
}

fn shake_hands(stream: &[u8], piece: usize) -> Heard {
    let (mut input, mut answers) = (BytesMut::new(), BytesMut::new());
    let mut server = ServerHandshake::start(&mut answers);
    answers.clear();
    let mut end = Ok(Progress::NeedInput);
    let mut pieces = stream.chunks(piece);
    for bytes in pieces.by_ref() {
        input.extend_from_slice(bytes);
        end = loop {
            match server.advance(&mut input, &mut answers, &Shelf) {
                Ok(Progress::Continue) => {}
                end => break end,
            }
        };
        assert!(
            input.len() <= MAX_OPTION_DATA as usize + 16 || end != Ok(Progress::NeedInput),
            "what is waited for has a limit"
        );
        if end != Ok(Progress::NeedInput) {
            break;
        }
    }
    let mut requests = (Vec::new(), None);
    if let Ok(Progress::Transmission(session)) = &end {
        check_session(session);
        pieces.for_each(|bytes| input.extend_from_slice(bytes));
        requests = transmit(&input, session, piece);
    }
    Heard {
        answers,
        end,
        requests,
    }
}

fn check_session(session: &Negotiated) {
    let offers = |flag| session.offers(flag);
    assert!(offers(TransmissionFlags::HAS_FLAGS));
    assert!(session.style != HeaderStyle::Simple || session.contexts.is_empty());
    assert!(session.style != HeaderStyle::Simple || !offers(TransmissionFlags::SEND_DF));
    assert!(session.style == HeaderStyle::Extended || !offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    for (n, context) in session.contexts.iter().enumerate() {
        let twice =
            |other: &crate::proto::SelectedContext| other.id == context.id || other.name == context.name;
        assert!(!session.contexts[..n].iter().any(twice), "a context twice");
    }
}

/// Every answer is a whole reply to an option, and its texts are what the specification wants of strings.
fn check_answers(heard: &Heard) {
    let mut rest = &heard.answers[..];
    while let Some(header) = rest.first_chunk::<20>() {
        if header[..8] != OPTION_REPLY_MAGIC.to_be_bytes() {
            break;
        }
        let [.., a, b, c, d, e, f, g, h] = *header;
        let reply = OptionReplyCode(u32::from_be_bytes([a, b, c, d]));
        let length = u32::from_be_bytes([e, f, g, h]) as usize;
        let data = rest.get(20..20 + length).expect("a whole reply");
        if reply.is_error() {
            assert!(!data.is_empty() && length <= MAX_STRING && !data.contains(&0));
            std::str::from_utf8(data).expect("a text in UTF-8");
        }
        assert!(reply != OptionReplyCode::ACK || length == 0);
        rest = &rest[20 + length..];
    }
    // The answer to EXPORT_NAME has no header.
    let entered = matches!(heard.end, Ok(Progress::Transmission(_)));
    let bare = [0, 10, 10 + EXPORT_NAME_ZEROES];
    assert!(
        rest.is_empty() || (entered && bare.contains(&rest.len())),
        "{rest:?}"
    );
}

/// What a server was asked, and what ended it.
type Requests = (Vec<Incoming>, Option<ProtocolError>);

fn transmit(stream: &[u8], session: &Negotiated, piece: usize) -> Requests {
    let mut decoder = RequestDecoder::default();
    let mut input = BytesMut::new();
    let mut requests = Vec::new();
    for bytes in stream.chunks(piece) {
        input.extend_from_slice(bytes);
        loop {
            match decoder.decode(&mut input, session) {
                Ok(None) => break,
                Ok(Some(Incoming::Disconnect)) => {
                    requests.push(Incoming::Disconnect);
                    return (requests, None);
                }
                Ok(Some(incoming)) => {
                    check_request(&incoming, session);
                    requests.push(incoming);
                }
                Err(error) => return (requests, Some(error)),
            }
        }
        assert!(
            input.capacity() <= 2 * (MAX_PAYLOAD as usize + 64 + stream.len()),
            "what is waited for has a limit"
        );
    }
    (requests, None)
}

/// What reaches an export lies in it, is not too long, and was offered.
fn check_request(incoming: &Incoming, session: &Negotiated) {
    let command = match incoming {
        Incoming::Request { command, .. } => command,
        Incoming::Refused { rule, .. } => {
            let text = rule.to_string();
            assert!(!text.is_empty() && text.len() < MAX_STRING);
            return;
        }
        Incoming::Disconnect => return,
    };
    let offers = |flag| assert!(session.offers(flag), "{command:?} was not offered");
    let writes = || {
        assert!(
            !session.offers(TransmissionFlags::READ_ONLY),
            "a write to a read-only export"
        )
    };
    let (offset, length) = match command {
        Command::Read {
            offset,
            length,
            dont_fragment,
        } => {
            assert!(*length <= MAX_PAYLOAD);
            if *dont_fragment {
                offers(TransmissionFlags::SEND_DF);
            }
            (*offset, u64::from(*length))
        }
        Command::Write { offset, data, .. } => {
            writes();
            assert!(data.len() <= MAX_PAYLOAD as usize);
            (*offset, data.len() as u64)
        }
        Command::Flush => (0, 0),
        Command::Trim { offset, length, .. } => {
            writes();
            offers(TransmissionFlags::SEND_TRIM);
            (*offset, *length)
        }
        Command::WriteZeroes {
            offset, length, fast, ..
        } => {
            writes();
            offers(TransmissionFlags::SEND_WRITE_ZEROES);
            if *fast {
                offers(TransmissionFlags::SEND_FAST_ZERO);
            }
            (*offset, *length)
        }
        Command::Cache { offset, length } => {
            offers(TransmissionFlags::SEND_CACHE);
            (*offset, *length)
        }
        Command::BlockStatus {
            offset,
            length,
            filter,
            ..
        } => {
            assert!(*length > 0 && !session.contexts.is_empty());
            let ids = filter.as_deref().unwrap_or_default();
            assert!(filter.is_none() || (!ids.is_empty() && ids.len() <= MAX_CONTEXTS));
            for (n, id) in ids.iter().enumerate() {
                assert!(session.context(*id).is_some() && !ids[..n].contains(id));
            }
            (*offset, *length)
        }
    };
    let end = offset.checked_add(length).expect("an end below 2^64");
    assert!(end <= session.export.size, "{command:?} leaves the export");
}

fn scripted_options(mut script: Script<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(u32::from(script.byte() & 7));
    while !script.is_at_end() {
        let code = script.byte();
        if code == u8::MAX {
            // What is not framed: transmission, for one.
            out.put_slice(script.rest());
            break;
        }
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
        encode_option(OptionCode(u32::from(code % 14)), &data, &mut out);
        if script.byte() == 0x80 {
            // A length that lies.
            let at = out.len() - data.len() - 4;
            let [.., a, b, c, d] = script.number().to_be_bytes();
            out[at..at + 4].copy_from_slice(&[a, b, c, d]);
        }
    }
    out
}

fn scripted_requests(mut script: Script<'_>, session: &Negotiated) -> BytesMut {
    let mut out = BytesMut::new();
    let mut cookie = 0;
    while !script.is_at_end() {
        cookie += 1;
        let length = script.number();
        let header = RequestHeader {
            flags: CommandFlags::from_wire(script.byte().into()),
            command: CommandCode(script.word() % 10),
            cookie: Cookie(cookie),
            offset: script.number(),
            length: if session.style == HeaderStyle::Extended {
                length
            } else {
                length & 0xffff_ffff
            },
        };
        header.encode(session.style, &mut out);
        let payload = header.payload_len(session.style);
        // Not much: more would only take time.
        if payload > 0 && payload <= 512 {
            if header.command == CommandCode::BLOCK_STATUS && payload >= 8 {
                out.put_u64(script.number());
                (8..payload)
                    .step_by(4)
                    .for_each(|_| out.put_u32(script.byte().into()));
            } else {
                out.put_bytes(script.byte(), usize::try_from(payload).unwrap_or(0));
            }
        }
        check_client(&header, session);
    }
    out
}

/// Our client sends what our server takes: a request that fits the session is the same at both ends.
fn check_client(header: &RequestHeader, session: &Negotiated) {
    let command = match header.command {
        CommandCode::READ => Command::Read {
            offset: header.offset,
            length: u32::try_from(header.length).unwrap_or(u32::MAX),
            dont_fragment: header.flags.contains(CommandFlags::DF),
        },
        CommandCode::WRITE => Command::Write {
            offset: header.offset,
            data: Bytes::from(vec![1; usize::try_from(header.length % 4096).unwrap_or(0)]),
            fua: header.flags.contains(CommandFlags::FUA),
        },
        CommandCode::TRIM => Command::Trim {
            offset: header.offset,
            length: header.length,
            fua: header.flags.contains(CommandFlags::FUA),
        },
        _ => Command::BlockStatus {
            offset: header.offset,
            length: header.length,
            req_one: header.flags.contains(CommandFlags::REQ_ONE),
            filter: header
                .flags
                .contains(CommandFlags::PAYLOAD_LEN)
                .then(|| session.contexts.iter().map(|context| context.id).collect()),
        },
    };
    let mut client = crate::proto::transmission::ClientTransmission::new(session.clone());
    let mut wire = BytesMut::new();
    let sent: Result<Cookie, RuleBroken> = client.submit(&command, &mut wire);
    let Ok(cookie) = sent else {
        assert!(wire.is_empty(), "a request that does not fit is not sent");
        return;
    };
    let found = RequestDecoder::default().decode(&mut wire, session);
    let Ok(Some(Incoming::Request {
        reply_to,
        command: found,
    })) = found
    else {
        panic!("our server refuses what our client sends: {found:?}");
    };
    let offset = header.offset;
    assert_eq!((reply_to, found), (ReplyTo { cookie, offset }, command));
    assert!(wire.is_empty());
}
