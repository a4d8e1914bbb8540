//! Our server against requests that it must refuse: which error, and that the session goes on.

use bytes::BufMut;
use proptest::prelude::*;

use super::*;
use crate::proto::constants::CommandCode;
use crate::proto::errno::Errno;
use crate::proto::error::{PeerMisbehaved, ProtocolError};
use crate::proto::flags::CommandFlags;
use crate::proto::limits::{MAX_CONTEXTS, MAX_PAYLOAD};
use crate::proto::request::{Command, Cookie, RequestHeader};
use crate::proto::transmission::Incoming;

const COMPACT: HeaderStyle = HeaderStyle::Structured;
const EXTENDED: HeaderStyle = HeaderStyle::Extended;
const READ: CommandCode = CommandCode::READ;
const WRITE: CommandCode = CommandCode::WRITE;
const BLOCK_STATUS: CommandCode = CommandCode::BLOCK_STATUS;
const NONE: CommandFlags = CommandFlags::NONE;
const PAYLOAD: CommandFlags = CommandFlags::PAYLOAD_LEN;
const SIZE: u64 = 1 << 40;

fn header(command: CommandCode, flags: CommandFlags, offset: u64, length: u64) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie: Cookie(77),
        offset,
        length,
    }
}

/// The error of a request, `None` if it is accepted; a FLUSH behind its payload must be understood.
fn outcome(session: &Negotiated, header: RequestHeader, payload: &[u8]) -> Option<Errno> {
    let mut input = BytesMut::new();
    header.encode(session.style, &mut input);
    input.put_slice(payload);
    Command::Flush.encode(session.style, Cookie(78), &mut input);
    let mut decoder = RequestDecoder::default();
    let first = decoder.decode(&mut input, session).unwrap().unwrap();
    let errno = match first {
        Incoming::Request { reply_to, .. } => {
            assert_eq!(reply_to, header.reply_to());
            None
        }
        Incoming::Refused { reply_to, rule } => {
            assert_eq!(reply_to, header.reply_to());
            assert!(rule.to_string().len() < 200);
            Some(rule.errno())
        }
        Incoming::Disconnect => panic!("no DISC was sent"),
    };
    assert!(matches!(
        decoder.decode(&mut input, session),
        Ok(Some(Incoming::Request {
            command: Command::Flush,
            ..
        }))
    ));
    assert!(input.is_empty() && decoder.is_between_requests());
    errno
}

fn refused(
    session: &Negotiated,
    command: CommandCode,
    flags: CommandFlags,
    offset: u64,
    length: u64,
) -> Errno {
    outcome(session, header(command, flags, offset, length), &[]).expect("refused")
}

fn accepted(session: &Negotiated, command: CommandCode, flags: CommandFlags, offset: u64, length: u64) {
    assert_eq!(
        outcome(session, header(command, flags, offset, length), &[]),
        None
    );
}

#[test]
fn ranges_end_with_the_export() {
    for style in [COMPACT, EXTENDED] {
        let session = session(style);
        accepted(&session, READ, NONE, SIZE - 512, 512);
        accepted(&session, READ, NONE, 0, 0);
        accepted(&session, READ, NONE, SIZE, 0);
        for (offset, length) in [(SIZE - 511, 512), (SIZE, 1), (u64::MAX, 1), (u64::MAX - 511, 512)] {
            assert_eq!(refused(&session, READ, NONE, offset, length), Errno::Inval);
            assert_eq!(
                refused(&session, CommandCode::TRIM, NONE, offset, length),
                Errno::Inval
            );
            assert_eq!(
                refused(&session, CommandCode::CACHE, NONE, offset, length),
                Errno::Inval
            );
            assert_eq!(
                refused(&session, CommandCode::WRITE_ZEROES, NONE, offset, length),
                Errno::NoSpc
            );
            let flags = if style == EXTENDED { PAYLOAD } else { NONE };
            let payload = vec![7; usize::try_from(length).unwrap()];
            let write = outcome(&session, header(WRITE, flags, offset, length), &payload);
            assert_eq!(write, Some(Errno::NoSpc));
            assert_eq!(
                refused(&session, BLOCK_STATUS, NONE, offset, length),
                Errno::Inval
            );
        }
    }
}

#[test]
fn a_write_past_the_end_is_drained() {
    for (style, flags) in [(COMPACT, NONE), (EXTENDED, PAYLOAD)] {
        let write = header(WRITE, flags, SIZE - 3, 4);
        assert_eq!(outcome(&session(style), write, b"abcd"), Some(Errno::NoSpc));
        let write = header(WRITE, flags, SIZE - 4, 4);
        assert_eq!(outcome(&session(style), write, b"abcd"), None);
    }
}

#[test]
fn a_read_only_export_refuses_every_writing_command() {
    for (style, flags) in [(COMPACT, NONE), (EXTENDED, PAYLOAD)] {
        let session = read_only(style);
        let write = header(WRITE, flags, 0, 4);
        assert_eq!(outcome(&session, write, b"abcd"), Some(Errno::Perm));
        assert_eq!(refused(&session, CommandCode::TRIM, NONE, 0, 512), Errno::Perm);
        assert_eq!(
            refused(&session, CommandCode::WRITE_ZEROES, NONE, 0, 512),
            Errno::Perm
        );
    }
}

#[test]
fn payload_limit_is_exact() {
    let session = session(EXTENDED);
    let limit = u64::from(MAX_PAYLOAD);
    for length in [limit - 1, limit] {
        accepted(&session, READ, NONE, 0, length);
        accepted(&session, READ, CommandFlags::DF, 0, length);
        let payload = vec![0; usize::try_from(length).unwrap()];
        assert_eq!(
            outcome(&session, header(WRITE, PAYLOAD, 0, length), &payload),
            None
        );
        assert_eq!(
            outcome(&read_only(EXTENDED), header(WRITE, PAYLOAD, 0, length), &payload),
            Some(Errno::Perm)
        );
    }
    assert_eq!(refused(&session, READ, NONE, 0, limit + 1), Errno::Inval);
    assert_eq!(
        refused(&session, READ, CommandFlags::DF, 0, limit + 1),
        Errno::Overflow
    );
    assert_eq!(refused(&session, READ, NONE, 0, 0xffff_ffff), Errno::Inval);
    // A longer payload is answered and not awaited.
    for length in [limit + 1, 0xffff_ffff, u64::MAX] {
        for session in [session.clone(), read_only(EXTENDED)] {
            let mut input = BytesMut::new();
            header(WRITE, PAYLOAD, 0, length).encode(EXTENDED, &mut input);
            let mut decoder = RequestDecoder::default();
            assert!(matches!(
                decoder.decode(&mut input, &session),
                Ok(Some(Incoming::Refused { .. }))
            ));
            for _ in 0..2 {
                assert_eq!(
                    decoder.decode(&mut input, &session),
                    Err(PeerMisbehaved::PayloadTooLong(length).into())
                );
            }
            assert!(input.capacity() < 4096);
        }
    }
}

#[test]
fn an_advertised_maximum_is_kept() {
    let mut session = session(COMPACT);
    session.export.block.maximum = 4096;
    accepted(&session, READ, NONE, 0, 4096);
    assert_eq!(refused(&session, READ, NONE, 0, 4097), Errno::Inval);
    assert_eq!(
        outcome(&session, header(WRITE, NONE, 0, 5000), &[0; 5000]),
        Some(Errno::Inval)
    );
    // Commands without a payload may mean more.
    accepted(&session, CommandCode::TRIM, NONE, 0, 1 << 30);
}

#[test]
fn requests_keep_to_the_minimum_block_size() {
    let mut session = session(COMPACT);
    session.export.block.minimum = 512;
    accepted(&session, READ, NONE, 512, 1024);
    for command in [READ, CommandCode::TRIM, CommandCode::WRITE_ZEROES, BLOCK_STATUS] {
        assert_eq!(refused(&session, command, NONE, 1, 512), Errno::Inval);
        assert_eq!(refused(&session, command, NONE, 512, 513), Errno::Inval);
    }
}

#[test]
fn flags_that_a_command_cannot_have_are_refused() {
    for style in [COMPACT, EXTENDED] {
        let session = session(style);
        for (command, flags) in [
            (READ, CommandFlags::REQ_ONE),
            (READ, CommandFlags::NO_HOLE),
            (CommandCode::TRIM, CommandFlags::DF),
            (CommandCode::CACHE, CommandFlags::NO_HOLE),
            (CommandCode::WRITE_ZEROES, CommandFlags::REQ_ONE),
            (BLOCK_STATUS, CommandFlags::DF),
            (READ, CommandFlags::from_wire(1 << 6)),
            (READ, CommandFlags::from_wire(1 << 15)),
        ] {
            assert_eq!(
                refused(&session, command, flags, 0, 512),
                Errno::Inval,
                "{command} {flags}"
            );
        }
        // FUA is valid on every command.
        for command in [
            READ,
            CommandCode::TRIM,
            CommandCode::CACHE,
            CommandCode::WRITE_ZEROES,
        ] {
            accepted(&session, command, CommandFlags::FUA, 0, 512);
        }
    }
}

#[test]
fn what_is_not_offered_is_refused() {
    let mut session = session(COMPACT);
    let write_zeroes = CommandCode::WRITE_ZEROES;
    accepted(
        &session,
        write_zeroes,
        CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE,
        0,
        512,
    );
    session.export.flags =
        TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_WRITE_ZEROES;
    assert_eq!(
        refused(&session, write_zeroes, CommandFlags::FAST_ZERO, 0, 512),
        Errno::Inval
    );
    assert_eq!(refused(&session, READ, CommandFlags::DF, 0, 512), Errno::Inval);
    assert_eq!(refused(&session, READ, CommandFlags::FUA, 0, 512), Errno::Inval);
    for command in [
        CommandCode::TRIM,
        CommandCode::CACHE,
        CommandCode::RESIZE,
        CommandCode(99),
    ] {
        assert_eq!(refused(&session, command, NONE, 0, 512), Errno::Inval);
    }
}

#[test]
fn flush_has_no_range() {
    let session = session(COMPACT);
    accepted(&session, CommandCode::FLUSH, CommandFlags::FUA, 0, 0);
    assert_eq!(refused(&session, CommandCode::FLUSH, NONE, 1, 0), Errno::Inval);
    assert_eq!(refused(&session, CommandCode::FLUSH, NONE, 0, 1), Errno::Inval);
}

#[test]
fn payloads_where_none_may_be_are_drained() {
    let extended = session(EXTENDED);
    for command in [READ, CommandCode::TRIM, CommandCode::FLUSH, CommandCode(99)] {
        let found = outcome(&extended, header(command, PAYLOAD, 0, 5), b"abcde");
        assert_eq!(found, Some(Errno::Inval));
    }
    // A WRITE has its payload whether it says so or not: qemu's client does not.
    assert_eq!(outcome(&extended, header(WRITE, NONE, 0, 4), b"abcd"), None);
    let mut unfiltered = extended;
    unfiltered.export.flags = unfiltered
        .export
        .flags
        .without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    let query = [&512_u64.to_be_bytes()[..], &[0, 0, 0, 5]].concat();
    let found = outcome(&unfiltered, header(BLOCK_STATUS, PAYLOAD, 0, 12), &query);
    assert_eq!(found, Some(Errno::Inval));
    // Without extended headers the flag is unknown, and no payload follows but that of WRITE.
    assert_eq!(refused(&session(COMPACT), READ, PAYLOAD, 0, 512), Errno::Inval);
    let write = header(WRITE, PAYLOAD, 0, 4);
    assert_eq!(outcome(&session(COMPACT), write, b"abcd"), Some(Errno::Inval));
}

#[test]
fn filters_name_selected_contexts_once() {
    let session = session(EXTENDED);
    let query = |length: u64, ids: &[u32]| {
        let mut payload = BytesMut::new();
        payload.put_u64(length);
        ids.iter().for_each(|id| payload.put_u32(*id));
        outcome(
            &session,
            header(BLOCK_STATUS, PAYLOAD, 0, payload.len() as u64),
            &payload,
        )
    };
    assert_eq!(query(512, &[6]), None);
    assert_eq!(query(SIZE, &[6, 5]), None);
    for (length, ids) in [
        (512, &[][..]),
        (512, &[7]),
        (512, &[5, 5]),
        (0, &[5]),
        (SIZE + 1, &[5]),
        (u64::MAX, &[5]),
    ] {
        assert_eq!(query(length, ids), Some(Errno::Inval), "{length} {ids:?}");
    }
    let odd = outcome(&session, header(BLOCK_STATUS, PAYLOAD, 0, 13), &[0; 13]);
    assert_eq!(odd, Some(Errno::Inval));
    let most = 8 + 4 * MAX_CONTEXTS;
    for length in [most, most + 4, 4] {
        let long = header(BLOCK_STATUS, PAYLOAD, 0, length as u64);
        assert_eq!(outcome(&session, long, &vec![0; length]), Some(Errno::Inval));
    }
}

#[test]
fn block_status_needs_contexts_and_a_length() {
    assert_eq!(
        refused(&session(HeaderStyle::Simple), BLOCK_STATUS, NONE, 0, 512),
        Errno::Inval
    );
    let extended = session(EXTENDED);
    assert_eq!(refused(&extended, BLOCK_STATUS, NONE, 0, 0), Errno::Inval);
    accepted(&extended, BLOCK_STATUS, CommandFlags::REQ_ONE, 0, SIZE);
    assert_eq!(refused(&extended, BLOCK_STATUS, NONE, 0, 1 << 63), Errno::Inval);
}

#[test]
fn a_wrong_magic_ends_the_session() {
    for style in STYLES {
        let mut input = BytesMut::from(&b"GET / HTTP/1.1\r\n\r\n                "[..]);
        assert!(matches!(
            RequestDecoder::default().decode(&mut input, &session(style)),
            Err(ProtocolError::Decode(_))
        ));
    }
}

#[test]
fn disc_ends_the_session_whatever_it_carries() {
    let mut input = BytesMut::new();
    header(CommandCode::DISC, CommandFlags::from_wire(0xffff), 9, 9).encode(EXTENDED, &mut input);
    assert_eq!(
        RequestDecoder::default().decode(&mut input, &session(EXTENDED)),
        Ok(Some(Incoming::Disconnect))
    );
}

proptest! {
    #[test]
    fn arbitrary_requests_never_panic_and_never_leave_the_export(
        style in 0usize..3,
        requests in proptest::collection::vec(
            (0u16..10, any::<u16>(), prop_oneof![0u64..8192, any::<u64>()], prop_oneof![0u64..64, any::<u64>()]), 0..8),
        junk in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let session = session(STYLES[style]);
        let mut input = BytesMut::new();
        for (command, flags, offset, length) in requests {
            let length = if session.style == EXTENDED { length } else { length & 0xffff_ffff };
            header(CommandCode(command), CommandFlags::from_wire(flags & 0x803f), offset, length)
                .encode(session.style, &mut input);
        }
        input.put_slice(&junk);
        let mut decoder = RequestDecoder::default();
        while let Ok(Some(incoming)) = decoder.decode(&mut input, &session) {
            let Incoming::Request { command, .. } = incoming else { continue };
            let (offset, length) = match &command {
                Command::Read { offset, length, .. } => (*offset, u64::from(*length)),
                Command::Write { offset, data, .. } => (*offset, data.len() as u64),
                Command::Trim { offset, length, .. }
                | Command::Cache { offset, length }
                | Command::WriteZeroes { offset, length, .. }
                | Command::BlockStatus { offset, length, .. } => (*offset, *length),
                Command::Flush => (0, 0),
            };
            prop_assert!(offset.checked_add(length).is_some_and(|end| end <= SIZE));
        }
    }
}
