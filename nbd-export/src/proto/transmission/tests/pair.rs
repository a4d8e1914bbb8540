//! Our client and our server.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::proto::constants::CommandCode;
use crate::proto::errno::Errno;
use crate::proto::limits::{COMPACT_EXTENT_CLAMP, MAX_DESCRIPTORS};
use crate::proto::reply::Descriptor;
use crate::proto::request::{Command, Cookie, ReplyTo};
use crate::proto::text::ErrorText;
use crate::proto::transmission::{Completion, Incoming, RuleBroken, StatusQuery};

/// Sends a command; what the server got of it.
fn send(client: &mut ClientTransmission, command: &Command) -> ReplyTo {
    let mut wire = BytesMut::new();
    let cookie = client.submit(command, &mut wire).unwrap();
    let incoming = RequestDecoder::default()
        .decode(&mut wire, client.session())
        .unwrap()
        .unwrap();
    assert!(wire.is_empty());
    let Incoming::Request {
        reply_to,
        command: received,
    } = incoming
    else {
        panic!("{incoming:?}");
    };
    assert_eq!((&received, reply_to.cookie), (command, cookie));
    reply_to
}

fn receive(client: &mut ClientTransmission, wire: &mut BytesMut) -> Finished {
    let finished = client.advance(wire).unwrap().expect("a whole reply");
    assert!(wire.is_empty());
    finished
}

fn read(offset: u64, length: u32) -> Command {
    Command::Read {
        offset,
        length,
        dont_fragment: false,
    }
}

#[test]
fn every_command_arrives_as_it_was_sent() {
    for style in STYLES {
        let mut client = ClientTransmission::new(session(style));
        let long = if style == HeaderStyle::Extended {
            1 << 39
        } else {
            0xffff_ffff
        };
        let mut commands = vec![
            Command::Read {
                offset: 7,
                length: 9,
                dont_fragment: true,
            },
            Command::Write {
                offset: 7,
                data: Bytes::from_static(b"data"),
                fua: true,
            },
            Command::Flush,
            Command::Trim {
                offset: 1,
                length: long,
                fua: true,
            },
            Command::Cache {
                offset: 1,
                length: long,
            },
            Command::WriteZeroes {
                offset: 1,
                length: long,
                fua: false,
                no_hole: true,
                fast: true,
            },
        ];
        if style != HeaderStyle::Simple {
            commands.push(Command::BlockStatus {
                offset: 1,
                length: long,
                req_one: true,
                filter: None,
            });
        }
        if style == HeaderStyle::Extended {
            commands.push(Command::BlockStatus {
                offset: 1,
                length: long,
                req_one: false,
                filter: Some(vec![ContextId(6)]),
            });
        }
        for command in &commands {
            send(&mut client, command);
        }
        assert_eq!(client.in_flight(), commands.len());
    }
}

#[test]
fn replies_come_in_any_order() {
    for style in STYLES {
        let mut client = ClientTransmission::new(session(style));
        let encoder = ReplyEncoder::new(client.session());
        let (a, b) = (send(&mut client, &read(0, 4)), send(&mut client, &Command::Flush));
        let mut wire = BytesMut::new();
        encoder.success(b, &mut wire);
        encoder.data(a, 0, 4, true, &mut wire);
        wire.extend_from_slice(b"abcd");
        let first = client.advance(&mut wire).unwrap().unwrap();
        assert_eq!((first.cookie, first.result), (b.cookie, Ok(Completion::Done)));
        let Ok(Completion::Read(reply)) = receive(&mut client, &mut wire).result else {
            panic!("no data");
        };
        assert_eq!(&reply.data[..], b"abcd");
        assert_eq!(client.in_flight(), 0);
    }
}

#[test]
fn errors_arrive_with_their_text() {
    for style in STYLES {
        let mut client = ClientTransmission::new(session(style));
        let encoder = ReplyEncoder::new(client.session());
        for command in [read(0, 4), Command::Flush] {
            let to = send(&mut client, &command);
            let mut wire = BytesMut::new();
            let text = ErrorText::new("ü".repeat(4096));
            encoder.error(to, Errno::Shutdown, &text, &mut wire);
            let error = receive(&mut client, &mut wire).result.unwrap_err();
            assert_eq!(error.errno, Errno::Shutdown);
            let expected = if encoder.has_chunks() {
                text
            } else {
                ErrorText::default()
            };
            assert_eq!(error.text, expected);
        }
    }
}

#[test]
fn an_error_says_where_if_that_is_known() {
    let past_end = |offset, length| RuleBroken::PastEnd {
        command: CommandCode::READ,
        offset,
        length,
        size: 1000,
    };
    for (rule, at) in [
        (past_end(990, 20), Some(1000)),
        (past_end(1000, 1), Some(1000)),
        (past_end(5000, 1), Some(5000)),
        // An offset has to lie within the request, and nothing lies within these.
        (past_end(5000, 0), None),
        (past_end(u64::MAX, 20), None),
        (RuleBroken::EmptyQuery, None),
    ] {
        for style in STYLES {
            let mut client = ClientTransmission::new(session(style));
            let to = send(&mut client, &read(0, 4));
            let mut wire = BytesMut::new();
            ReplyEncoder::new(client.session()).refusal(to, rule, &mut wire);
            let error = receive(&mut client, &mut wire).result.unwrap_err();
            let told = (style != HeaderStyle::Simple).then_some(at).flatten();
            assert_eq!((error.errno, error.offset), (rule.errno(), told));
        }
    }
}

#[test]
fn a_read_of_nothing_is_answered() {
    for style in STYLES {
        let mut client = ClientTransmission::new(session(style));
        let to = send(&mut client, &read(5, 0));
        let mut wire = BytesMut::new();
        ReplyEncoder::new(client.session()).success(to, &mut wire);
        assert_eq!(
            receive(&mut client, &mut wire).result,
            Ok(Completion::Read(Default::default()))
        );
    }
}

#[test]
fn golden_replies() {
    let to = ReplyTo {
        cookie: Cookie(0x1122_3344_5566_7788),
        offset: 0x99,
    };
    let reply = |style, encode: &dyn Fn(ReplyEncoder, &mut BytesMut)| {
        let mut out = BytesMut::new();
        encode(ReplyEncoder::new(&session(style)), &mut out);
        out
    };
    let cookie = b"\x11\x22\x33\x44\x55\x66\x77\x88";
    let ok = |encoder: ReplyEncoder, out: &mut BytesMut| encoder.success(to, out);
    assert_eq!(
        reply(HeaderStyle::Simple, &ok)[..],
        [b"\x67\x44\x66\x98\0\0\0\0", &cookie[..]].concat()
    );
    assert_eq!(
        reply(HeaderStyle::Structured, &ok)[..],
        [b"\x66\x8e\x33\xef\0\x01\0\0", &cookie[..], b"\0\0\0\0"].concat()
    );
    let hole = |encoder: ReplyEncoder, out: &mut BytesMut| encoder.hole(to, 0xa0, 0x200, false, out);
    assert_eq!(
        reply(HeaderStyle::Extended, &hole)[..],
        [
            &b"\x6e\x8a\x27\x8c\0\0\0\x02"[..],
            cookie,
            b"\0\0\0\0\0\0\0\x99\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0\xa0\0\0\x02\0"
        ]
        .concat()
    );
    let status = |encoder: ReplyEncoder, out: &mut BytesMut| {
        let query = StatusQuery {
            length: 512,
            req_one: false,
        };
        let extent = Descriptor {
            length: 512,
            status: 3,
        };
        encoder.status(to, ContextId(5), query, &[extent], true, out);
    };
    assert_eq!(
        reply(HeaderStyle::Structured, &status)[..],
        [
            b"\x66\x8e\x33\xef\0\x01\0\x05",
            &cookie[..],
            b"\0\0\0\x0c\0\0\0\x05\0\0\x02\0\0\0\0\x03"
        ]
        .concat()
    );
    assert_eq!(
        reply(HeaderStyle::Extended, &status)[..],
        [
            &b"\x6e\x8a\x27\x8c\0\x01\0\x06"[..],
            cookie,
            b"\0\0\0\0\0\0\0\x99\0\0\0\0\0\0\0\x18\0\0\0\x05\0\0\0\x01",
            b"\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x03"
        ]
        .concat()
    );
    let error = |encoder: ReplyEncoder, out: &mut BytesMut| {
        encoder.error(to, Errno::Inval, &ErrorText::new("no"), out);
    };
    assert_eq!(
        reply(HeaderStyle::Structured, &error)[..],
        [
            b"\x66\x8e\x33\xef\0\x01\x80\x01",
            &cookie[..],
            b"\0\0\0\x08\0\0\0\x16\0\x02no"
        ]
        .concat()
    );
}

/// Asks for `length` bytes and answers with extents of these lengths: what arrives, and what the server counted.
fn status(style: HeaderStyle, length: u64, req_one: bool, extents: &[u64]) -> (Vec<u64>, u64) {
    let mut client = ClientTransmission::new(session(style));
    let to = send(
        &mut client,
        &Command::BlockStatus {
            offset: 0,
            length,
            req_one,
            filter: None,
        },
    );
    let descriptors: Vec<_> = extents
        .iter()
        .map(|&length| Descriptor { length, status: 1 })
        .collect();
    let encoder = ReplyEncoder::new(client.session());
    let query = StatusQuery { length, req_one };
    let mut wire = BytesMut::new();
    let covered = encoder.status(to, ContextId(6), query, &descriptors, false, &mut wire);
    encoder.status(to, ContextId(5), query, &descriptors, true, &mut wire);
    let Ok(Completion::Status(contexts)) = receive(&mut client, &mut wire).result else {
        panic!("no status");
    };
    assert_eq!(
        (contexts[0].context, contexts[1].context),
        (ContextId(5), ContextId(6))
    );
    assert_eq!(contexts[0].descriptors, contexts[1].descriptors);
    let lengths = contexts[0].descriptors.iter().map(|d| d.length).collect();
    (lengths, covered)
}

#[test]
fn status_replies_are_cut_as_the_query_and_the_style_want() {
    let (compact, extended) = (HeaderStyle::Structured, HeaderStyle::Extended);
    for style in [compact, extended] {
        // What lies behind the request is not told, but the last extent may run past it.
        assert_eq!(status(style, 100, false, &[60, 40, 5]), (vec![60, 40], 100));
        assert_eq!(status(style, 100, false, &[60, 50, 5]), (vec![60, 50], 110));
        assert_eq!(status(style, 100, false, &[60]), (vec![60], 60));
        assert_eq!(status(style, 100, true, &[60, 40]), (vec![60], 60));
        assert_eq!(status(style, 100, true, &[500]), (vec![100], 100));
    }
    let large = 1 << 33;
    let max = u64::from(u32::MAX);
    assert_eq!(status(extended, 1 << 34, false, &[large, large]).0.len(), 2);
    assert_eq!(status(compact, max, false, &[max, 7]), (vec![max], max));
    // An extent that does not fit is cut, and what follows it is not told: it would be misplaced.
    for too_long in [max + 1, large] {
        assert_eq!(
            status(compact, max, false, &[5, too_long, 7]),
            (vec![5, COMPACT_EXTENT_CLAMP], 5 + COMPACT_EXTENT_CLAMP)
        );
    }
}

#[test]
fn descriptor_limit_is_exact() {
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        for (count, expected) in [
            (MAX_DESCRIPTORS - 1, MAX_DESCRIPTORS - 1),
            (MAX_DESCRIPTORS, MAX_DESCRIPTORS),
            (MAX_DESCRIPTORS + 1, MAX_DESCRIPTORS),
        ] {
            let (lengths, covered) = status(style, 1 << 30, false, &vec![1; count]);
            assert_eq!((lengths.len(), covered), (expected, expected as u64));
        }
    }
}

#[test]
#[should_panic(expected = "at least one byte")]
fn an_empty_extent_is_never_sent() {
    status(HeaderStyle::Extended, 100, false, &[5, 0, 5]);
}

#[test]
#[should_panic(expected = "a status of 32 bits")]
fn a_wide_status_is_never_sent_in_32_bits() {
    let to = ReplyTo {
        cookie: Cookie(1),
        offset: 0,
    };
    let query = StatusQuery {
        length: 1,
        req_one: false,
    };
    let wide = Descriptor {
        length: 1,
        status: 1 << 32,
    };
    ReplyEncoder::new(&session(HeaderStyle::Structured)).status(
        to,
        ContextId(5),
        query,
        &[wide],
        true,
        &mut BytesMut::new(),
    );
}

proptest! {
    #[test]
    fn reply_chunks_cover_request_exactly_once(
        extended: bool,
        offset in 0u64..1 << 39,
        pieces in proptest::collection::vec((1u32..3000, any::<bool>()), 1..20),
        order: u64,
        cut in 1usize..500,
    ) {
        let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Structured };
        let mut client = ClientTransmission::new(session(style));
        let length = pieces.iter().map(|(len, _)| len).sum();
        let to = send(&mut client, &read(offset, length));
        let encoder = ReplyEncoder::new(client.session());
        let byte = |at: u64| (at % 251) as u8 | 1;
        let (mut at, mut chunks, mut expected) = (offset, Vec::new(), Vec::new());
        for (len, hole) in &pieces {
            chunks.push((at, *len, *hole));
            expected.extend((at..at + u64::from(*len)).map(|at| if *hole { 0 } else { byte(at) }));
            at += u64::from(*len);
        }
        chunks.sort_by_key(|(at, ..)| at.wrapping_mul(order | 1));
        let mut wire = BytesMut::new();
        for (at, len, hole) in chunks {
            if hole {
                encoder.hole(to, at, len, false, &mut wire);
            } else {
                encoder.data(to, at, len, false, &mut wire);
                wire.extend((at..at + u64::from(len)).map(byte));
            }
        }
        encoder.success(to, &mut wire);

        // In pieces of any size.
        let (mut input, mut finished) = (BytesMut::new(), None);
        for piece in wire.chunks(cut) {
            prop_assert_eq!(&finished, &None);
            input.extend_from_slice(piece);
            finished = client.advance(&mut input).unwrap();
        }
        let Some(Finished { result: Ok(Completion::Read(reply)), .. }) = finished else {
            panic!("no data");
        };
        prop_assert_eq!(&reply.data[..], &expected[..]);
        let holes: u64 = reply.holes.iter().map(|hole| hole.end - hole.start).sum();
        prop_assert_eq!(holes, pieces.iter().filter(|(_, hole)| *hole).map(|(len, _)| u64::from(*len)).sum::<u64>());
    }

    #[test]
    fn status_encode_decode_identity(
        extended: bool,
        extents in proptest::collection::vec((1u64..1 << 20, any::<u32>()), 1..40),
    ) {
        let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Structured };
        let descriptors: Vec<_> = extents
            .iter()
            .map(|(length, status)| Descriptor {
                length: *length,
                status: if extended { u64::from(*status) << 31 | 1 << 63 } else { u64::from(*status) },
            })
            .collect();
        let length = extents.iter().map(|(length, _)| length).sum();
        let mut client = ClientTransmission::new(session(style));
        let to = send(&mut client, &Command::BlockStatus { offset: 0, length, req_one: false, filter: None });
        let encoder = ReplyEncoder::new(client.session());
        let query = StatusQuery { length, req_one: false };
        let mut wire = BytesMut::new();
        for id in [5, 6] {
            encoder.status(to, ContextId(id), query, &descriptors, id == 6, &mut wire);
        }
        let Ok(Completion::Status(contexts)) = receive(&mut client, &mut wire).result else { panic!("no status") };
        prop_assert_eq!(&contexts[0].descriptors, &descriptors);
    }
}
