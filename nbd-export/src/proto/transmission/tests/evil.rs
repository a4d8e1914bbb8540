//! Our client against servers that break the rules: each is one variant, and nothing of the reply is handed on.

use bytes::{BufMut, Bytes};
use proptest::prelude::*;

use super::*;
use crate::proto::constants::ChunkCode;
use crate::proto::errno::Errno;
use crate::proto::error::{DecodeError, PeerMisbehaved, ProtocolError};
use crate::proto::flags::ReplyFlags;
use crate::proto::limits::{MAX_CONTENT_CHUNKS, MAX_DESCRIPTORS, MAX_ERROR_PAYLOAD};
use crate::proto::reply::{Chunk, ChunkHeader, encode_simple};
use crate::proto::request::{Command, Cookie};
use crate::proto::transmission::ServerError;

const STRUCTURED: HeaderStyle = HeaderStyle::Structured;
const EXTENDED: HeaderStyle = HeaderStyle::Extended;
const OFFSET: u64 = 1000;

fn read() -> Command {
    Command::Read {
        offset: OFFSET,
        length: 100,
        dont_fragment: false,
    }
}

fn status(req_one: bool) -> Command {
    Command::BlockStatus {
        offset: OFFSET,
        length: 100,
        req_one,
        filter: None,
    }
}

/// A chunk of the reply to the first request.
fn chunk(style: HeaderStyle, code: ChunkCode, done: bool, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    ChunkHeader {
        flags: if done { ReplyFlags::DONE } else { ReplyFlags::NONE },
        chunk: code,
        cookie: Cookie(1),
        offset: (style == EXTENDED).then_some(OFFSET),
        length: payload.len() as u64,
    }
    .encode(&mut out);
    out.put_slice(payload);
    out
}

fn listen(style: HeaderStyle, command: &Command, wire: &[u8]) -> Result<Option<Finished>, ProtocolError> {
    let mut client = ClientTransmission::new(session(style));
    client.submit(command, &mut BytesMut::new()).unwrap();
    let mut input = BytesMut::from(wire);
    let first = client.advance(&mut input)?;
    // What follows a whole reply must be good too.
    if !input.is_empty() && first.is_some() {
        client.advance(&mut input)?;
    }
    Ok(first)
}

fn misbehaved(style: HeaderStyle, command: &Command, wire: &[&[u8]]) -> PeerMisbehaved {
    match listen(style, command, &wire.concat()) {
        Err(ProtocolError::Misbehaved(rule)) => rule,
        other => panic!("{other:?}"),
    }
}

fn data(offset: u64, len: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &vec![7; len]].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

#[test]
fn error_chunk_limit_is_exact() {
    let one = chunk(STRUCTURED, ChunkCode::ERROR, false, b"\0\0\0\x05\0\0");
    for command in [read(), Command::Flush] {
        let most = one.repeat(MAX_CONTENT_CHUNKS);
        assert_eq!(listen(STRUCTURED, &command, &most), Ok(None));
        assert_eq!(
            misbehaved(STRUCTURED, &command, &[&most, &one]),
            PeerMisbehaved::TooManyChunks
        );
    }
}

#[test]
fn replies_to_nothing_are_refused() {
    for style in STYLES {
        let mut wire = BytesMut::new();
        if style == EXTENDED {
            ChunkHeader {
                flags: ReplyFlags::DONE,
                chunk: ChunkCode::NONE,
                cookie: Cookie(99),
                offset: Some(0),
                length: 0,
            }
            .encode(&mut wire);
        } else {
            encode_simple(None, Cookie(99), &mut wire);
        }
        let unknown = PeerMisbehaved::UnknownCookie(Cookie(99));
        assert_eq!(misbehaved(style, &read(), &[&wire]), unknown);
    }
}

#[test]
fn a_chunk_after_the_last_is_refused() {
    for style in [STRUCTURED, EXTENDED] {
        let whole = chunk(style, ChunkCode::OFFSET_DATA, true, &data(OFFSET, 100));
        let extra = chunk(style, ChunkCode::NONE, true, &[]);
        assert_eq!(
            misbehaved(style, &read(), &[&whole, &extra]),
            PeerMisbehaved::UnknownCookie(Cookie(1))
        );
    }
}

#[test]
fn content_must_be_that_of_the_request() {
    for style in [STRUCTURED, EXTENDED] {
        for (offset, len) in [(OFFSET - 1, 10), (OFFSET + 91, 10), (u64::MAX, 1), (0, 100)] {
            assert!(matches!(
                misbehaved(
                    style,
                    &read(),
                    &[&chunk(style, ChunkCode::OFFSET_DATA, true, &data(offset, len))]
                ),
                PeerMisbehaved::ContentOutsideRequest { .. }
            ));
        }
        assert!(matches!(
            misbehaved(
                style,
                &read(),
                &[&chunk(style, ChunkCode::OFFSET_HOLE, true, &hole(OFFSET, 101))]
            ),
            PeerMisbehaved::ContentOutsideRequest { .. }
        ));
        assert!(matches!(
            misbehaved(
                style,
                &read(),
                &[&chunk(style, ChunkCode::OFFSET_HOLE, true, &hole(OFFSET, 0))]
            ),
            PeerMisbehaved::ContentOutsideRequest { .. }
        ));
        let half = chunk(style, ChunkCode::OFFSET_DATA, false, &data(OFFSET, 50));
        let over = chunk(style, ChunkCode::OFFSET_HOLE, true, &hole(OFFSET + 49, 51));
        assert_eq!(
            misbehaved(style, &read(), &[&half, &over]),
            PeerMisbehaved::OverlappingContent { offset: OFFSET + 49 }
        );
        let end = chunk(style, ChunkCode::NONE, true, &[]);
        assert_eq!(
            misbehaved(style, &read(), &[&half, &end]),
            PeerMisbehaved::MissingContent(50)
        );
        assert_eq!(
            misbehaved(style, &read(), &[&end]),
            PeerMisbehaved::MissingContent(100)
        );
    }
}

#[test]
fn giant_chunks_are_refused_before_they_are_awaited() {
    for (code, command, longest) in [
        (ChunkCode::OFFSET_DATA, read(), 108),
        (ChunkCode::OFFSET_HOLE, read(), 12),
        (ChunkCode::NONE, read(), 0),
        (ChunkCode::ERROR, read(), MAX_ERROR_PAYLOAD),
        (
            ChunkCode::BLOCK_STATUS_EXT,
            status(false),
            8 + 16 * MAX_DESCRIPTORS as u64,
        ),
        (ChunkCode::BLOCK_STATUS_EXT, status(true), 24),
    ] {
        for length in [longest, longest + 1, u64::MAX] {
            let mut wire = BytesMut::new();
            ChunkHeader {
                flags: ReplyFlags::NONE,
                chunk: code,
                cookie: Cookie(1),
                offset: Some(OFFSET),
                length,
            }
            .encode(&mut wire);
            let found = listen(EXTENDED, &command, &wire);
            if length > longest {
                let chunk = code;
                assert_eq!(
                    found,
                    Err(PeerMisbehaved::BadChunkLength { chunk, length }.into())
                );
            } else if length > 0 {
                assert_eq!(found, Ok(None), "{code}");
            }
        }
    }
}

#[test]
fn replies_that_were_not_negotiated_are_refused() {
    let mut simple = BytesMut::new();
    encode_simple(None, Cookie(1), &mut simple);
    let structured = chunk(STRUCTURED, ChunkCode::NONE, true, &[]);
    let extended = chunk(EXTENDED, ChunkCode::NONE, true, &[]);
    for (style, wire) in [
        (HeaderStyle::Simple, &structured),
        (HeaderStyle::Simple, &extended),
        (STRUCTURED, &extended),
        (EXTENDED, &structured),
        (EXTENDED, &simple),
    ] {
        assert_eq!(
            misbehaved(style, &Command::Flush, &[wire]),
            PeerMisbehaved::ReplyNotNegotiated
        );
    }
    // Simple replies remain for commands without content, but not for READ.
    assert!(listen(STRUCTURED, &Command::Flush, &simple).unwrap().is_some());
    for command in [read(), status(false)] {
        assert_eq!(
            misbehaved(STRUCTURED, &command, &[&simple]),
            PeerMisbehaved::UnexpectedSimpleReply(Cookie(1))
        );
    }
    assert!(matches!(
        listen(STRUCTURED, &read(), b"HTTP/1.1"),
        Err(ProtocolError::Decode(DecodeError::BadMagic { .. }))
    ));
}

#[test]
fn an_extended_reply_repeats_the_offset() {
    let mut wire = BytesMut::new();
    ChunkHeader {
        flags: ReplyFlags::DONE,
        chunk: ChunkCode::NONE,
        cookie: Cookie(1),
        offset: Some(OFFSET + 1),
        length: 0,
    }
    .encode(&mut wire);
    assert_eq!(
        misbehaved(EXTENDED, &read(), &[&wire]),
        PeerMisbehaved::WrongReplyOffset {
            expected: OFFSET,
            found: OFFSET + 1
        }
    );
}

#[test]
fn chunks_fit_their_command() {
    for (style, code, command) in [
        (STRUCTURED, ChunkCode::BLOCK_STATUS_EXT, status(false)),
        (EXTENDED, ChunkCode::BLOCK_STATUS, status(false)),
        (EXTENDED, ChunkCode::OFFSET_DATA, status(false)),
        (
            EXTENDED,
            ChunkCode::OFFSET_HOLE,
            Command::Cache {
                offset: OFFSET,
                length: 100,
            },
        ),
        (EXTENDED, ChunkCode::BLOCK_STATUS_EXT, read()),
        (EXTENDED, ChunkCode(3), read()),
        (EXTENDED, ChunkCode(0x7fff), read()),
    ] {
        assert_eq!(
            misbehaved(style, &command, &[&chunk(style, code, true, &[0; 24])]),
            PeerMisbehaved::UnexpectedChunk(code)
        );
    }
    assert_eq!(
        misbehaved(
            EXTENDED,
            &read(),
            &[&chunk(EXTENDED, ChunkCode::NONE, false, &[])]
        ),
        PeerMisbehaved::EmptyChunkNotLast
    );
    for (code, len) in [(ChunkCode::OFFSET_DATA, 8), (ChunkCode::OFFSET_HOLE, 11)] {
        assert!(matches!(
            misbehaved(EXTENDED, &read(), &[&chunk(EXTENDED, code, true, &vec![0; len])]),
            PeerMisbehaved::BadChunkLength { .. }
        ));
    }
}

#[test]
fn status_chunks_are_held_against_the_request() {
    let ext = |context: u32, count: u32, lengths: &[u64], done| {
        let mut payload = BytesMut::new();
        payload.put_u32(context);
        payload.put_u32(count);
        for length in lengths {
            payload.put_u64(*length);
            payload.put_u64(u64::MAX);
        }
        chunk(EXTENDED, ChunkCode::BLOCK_STATUS_EXT, done, &payload)
    };
    let found = |chunks: &[&[u8]]| misbehaved(EXTENDED, &status(false), chunks);
    assert_eq!(
        found(&[&ext(5, 1, &[0], true)]),
        PeerMisbehaved::EmptyExtent(ContextId(5))
    );
    assert_eq!(
        found(&[&ext(4, 1, &[100], true)]),
        PeerMisbehaved::UnknownContext(ContextId(4))
    );
    assert_eq!(
        found(&[&ext(5, 1, &[9], false), &ext(5, 1, &[9], true)]),
        PeerMisbehaved::ContextTwice(ContextId(5))
    );
    assert_eq!(
        found(&[&ext(5, 1, &[100], true)]),
        PeerMisbehaved::MissingContext(ContextId(6))
    );
    assert_eq!(
        found(&[&ext(5, 2, &[100, 1], true)]),
        PeerMisbehaved::ExtentsBeyondRequest(ContextId(5))
    );
    assert_eq!(
        found(&[&ext(5, 3, &[1, 1], true)]),
        PeerMisbehaved::WrongDescriptorCount {
            announced: 3,
            found: 2
        }
    );
    assert!(matches!(
        found(&[&ext(5, 0, &[], true)]),
        PeerMisbehaved::BadChunkLength { .. }
    ));
    assert_eq!(
        misbehaved(EXTENDED, &status(true), &[&ext(5, 1, &[101], true)]),
        PeerMisbehaved::ExtentsBeyondRequest(ContextId(5))
    );
    let odd = chunk(STRUCTURED, ChunkCode::BLOCK_STATUS, true, &[0; 15]);
    assert!(matches!(
        misbehaved(STRUCTURED, &status(false), &[&odd]),
        PeerMisbehaved::BadChunkLength { .. }
    ));
}

#[test]
fn error_chunks_fail_the_request_and_keep_the_session() {
    let error = |wire: &[&[u8]]| -> ServerError {
        let finished = listen(EXTENDED, &read(), &wire.concat()).unwrap().unwrap();
        finished.result.unwrap_err()
    };
    let whole = chunk(EXTENDED, ChunkCode::OFFSET_DATA, false, &data(OFFSET, 100));
    let end = chunk(EXTENDED, ChunkCode::NONE, true, &[]);
    let at = chunk(
        EXTENDED,
        ChunkCode::ERROR_OFFSET,
        false,
        b"\0\0\0\x05\0\x02no\0\0\0\0\0\0\x03\xe8",
    );
    let found = error(&[&whole, &at, &end]);
    assert_eq!((found.errno, found.offset), (Errno::Io, Some(OFFSET)));
    assert_eq!(found.text.as_str(), "no");
    // A kind of error from the future, with more fields, and a value that nobody knows.
    let future = chunk(EXTENDED, ChunkCode(0x80ff), true, b"\0\0\x27\x0f\0\x01xmore");
    assert_eq!(error(&[&future]).errno, Errno::Inval);
    // ESHUTDOWN outweighs what came before it.
    let shutdown = chunk(EXTENDED, ChunkCode::ERROR, true, b"\0\0\0\x6c\0\0");
    assert_eq!(error(&[&at, &shutdown]).errno, Errno::Shutdown);
}

#[test]
fn error_chunks_that_lie_are_refused() {
    let found =
        |code, payload: &[u8]| misbehaved(EXTENDED, &read(), &[&chunk(EXTENDED, code, true, payload)]);
    assert_eq!(
        found(ChunkCode::ERROR, b"\0\0\0\0\0\0"),
        PeerMisbehaved::ErrorWithoutValue
    );
    assert_eq!(
        found(ChunkCode::ERROR, b"\0\0\0\x05\0\x02n"),
        PeerMisbehaved::ErrorTextTooLong
    );
    assert!(matches!(
        found(ChunkCode::ERROR, b"\0\0\0\x05\0"),
        PeerMisbehaved::BadChunkLength { .. }
    ));
    assert!(matches!(
        found(ChunkCode::ERROR_OFFSET, b"\0\0\0\x05\0\0\0\0"),
        PeerMisbehaved::BadChunkLength { .. }
    ));
}

proptest! {
    #[test]
    fn arbitrary_replies_never_panic(
        style in 0usize..3,
        chunks in proptest::collection::vec(
            (prop_oneof![0u16..8, 0x8000u16..0x8004, any::<u16>()], any::<bool>(), 0u64..4,
             proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..40)), 0..10),
        junk in proptest::collection::vec(any::<u8>(), 0..80),
        cut in 1usize..60,
    ) {
        let style = STYLES[style];
        let mut client = ClientTransmission::new(session(style));
        let mut sent = BytesMut::new();
        client.submit(&Command::Read { offset: 0, length: 16, dont_fragment: false }, &mut sent).unwrap();
        client.submit(&Command::Flush, &mut sent).unwrap();
        let query = Command::BlockStatus { offset: 0, length: 16, req_one: false, filter: None };
        let _ = client.submit(&query, &mut sent);
        let mut wire = BytesMut::new();
        for (code, done, cookie, payload) in &chunks {
            if style == HeaderStyle::Simple {
                encode_simple(done.then_some(Errno::Io), Cookie(*cookie), &mut wire);
            } else {
                ChunkHeader {
                    flags: if *done { ReplyFlags::DONE } else { ReplyFlags::NONE },
                    chunk: ChunkCode(*code),
                    cookie: Cookie(*cookie),
                    offset: (style == EXTENDED).then_some(0),
                    length: payload.len() as u64,
                }
                .encode(&mut wire);
            }
            wire.put_slice(payload);
        }
        wire.put_slice(&junk);
        let mut input = BytesMut::new();
        'wire: for piece in wire.chunks(cut) {
            input.extend_from_slice(piece);
            loop {
                match client.advance(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'wire,
                }
            }
        }
    }

    #[test]
    fn arbitrary_chunks_never_panic(code: u16, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Chunk::decode(ChunkCode(code & 0x8007), Bytes::from(payload));
    }
}
