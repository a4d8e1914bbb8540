//! Requests, in a session that was negotiated or given.

use bytes::{BufMut, Bytes, BytesMut};

use crate::fuzzing::script::Script;
use crate::proto::constants::CommandCode;
use crate::proto::flags::CommandFlags;
use crate::proto::limits::{MAX_CONTEXTS, MAX_PAYLOAD, MAX_STRING};
use crate::proto::request::{Cookie, RequestHeader};
use crate::proto::transmission::{ClientTransmission, Incoming, RequestDecoder, RuleBroken};
use crate::proto::{Command, HeaderStyle, Negotiated, ProtocolError, ReplyTo, TransmissionFlags};

/// What a server was asked, and what ended it.
pub(super) type Requests = (Vec<Incoming>, Option<ProtocolError>);

pub(super) fn transmit(stream: &[u8], session: &Negotiated, piece: usize) -> Requests {
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

pub(super) fn scripted_requests(mut script: Script<'_>, session: &Negotiated) -> BytesMut {
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
    let mut client = ClientTransmission::new(session.clone());
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
