//! Our client against hand-written servers: old ones, poor ones and evil ones.

use bytes::BufMut;
use proptest::prelude::*;

use super::*;
use crate::proto::constants::InfoCode;
use crate::proto::context::ContextId;
use crate::proto::error::{DecodeError, PeerIncompatible, PeerMisbehaved};
use crate::proto::limits::{MAX_EXPORT_SIZE, MAX_LISTED, MAX_LISTED_BYTES, MAX_OPTION_REPLY};
use crate::proto::option::encode_option_reply;

const ACK: OptionReplyCode = OptionReplyCode::ACK;
const UNSUP: OptionReplyCode = OptionReplyCode::ERR_UNSUP;

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

/// A server's bytes: greeting and replies.
fn says(replies: &[(OptionCode, OptionReplyCode, &[u8])]) -> BytesMut {
    let mut out = BytesMut::from(GREETING);
    for (option, reply, data) in replies {
        encode_option_reply(*option, *reply, data, &mut out);
    }
    out
}

/// What the client makes of a server's bytes, given in pieces, and what it sends.
fn listen(goal: Goal, server: &[u8], piece: usize) -> (Result<ClientProgress, ProtocolError>, BytesMut) {
    let mut client = ClientHandshake::new(goal, HeaderStyle::Extended);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut end = Ok(ClientProgress::NeedInput);
    for piece in server.chunks(piece) {
        input.extend_from_slice(piece);
        end = client.advance(&mut input, &mut output);
        if end != Ok(ClientProgress::NeedInput) {
            break;
        }
    }
    (end, output)
}

fn error(goal: Goal, server: &[u8]) -> ProtocolError {
    listen(goal, server, usize::MAX).0.unwrap_err()
}

const EXT: (OptionCode, OptionReplyCode, &[u8]) = (OptionCode::EXTENDED_HEADERS, ACK, &[]);
const EXPORT_INFO: &[u8] = b"\0\0\0\0\0\0\0\x10\0\0\0\x01";

#[test]
fn a_server_that_knows_only_export_name_is_enough() {
    for zeroes in [false, true] {
        let mut server = says(&[
            (OptionCode::EXTENDED_HEADERS, UNSUP, b""),
            (OptionCode::STRUCTURED_REPLY, UNSUP, b""),
            (OptionCode::GO, UNSUP, b"what?"),
        ]);
        server[17] = if zeroes { 1 } else { 3 };
        server.put_slice(b"\0\0\0\0\0\0\x10\0\0\x03");
        if zeroes {
            server.put_bytes(0, 124);
        }
        let (end, sent) = listen(enter("disk", &["base:allocation"]), &server, 7);
        let Ok(ClientProgress::Done(Outcome::Transmission(session))) = end else {
            panic!("{end:?}");
        };
        assert_eq!((session.export.size, session.style), (4096, HeaderStyle::Simple));
        assert_eq!(session.contexts, []);
        // Nothing that drops the connection of such a server was sent.
        let needle = |code: u8| [&b"IHAVEOPT\0\0\0"[..], &[code]].concat();
        for code in [5, 9, 10] {
            assert!(!sent.windows(12).any(|window| window == needle(code)));
        }
    }
}

#[test]
fn a_server_without_fixed_newstyle_gets_one_option() {
    let mut server = BytesMut::from(&b"NBDMAGICIHAVEOPT\0\0"[..]);
    server.put_slice(b"\0\0\0\0\0\0\x10\0\0\x03");
    server.put_bytes(0, 124);
    let (end, sent) = listen(enter("disk", &[]), &server, usize::MAX);
    assert!(matches!(end, Ok(ClientProgress::Done(_))));
    assert_eq!(&sent[..], b"\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
    assert_eq!(
        error(Goal::ListExports, &server),
        PeerIncompatible::NotFixedNewstyle.into()
    );
}

#[test]
fn what_is_no_newstyle_server_is_refused() {
    assert_eq!(
        error(
            enter("", &[]),
            b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0\0\0"
        ),
        PeerIncompatible::Oldstyle.into()
    );
    assert!(matches!(
        error(enter("", &[]), b"SSH-2.0-OpenSSH"),
        ProtocolError::Decode(DecodeError::BadMagic { .. })
    ));
}

#[test]
fn tls_is_wanted_and_not_built() {
    for option in [OptionCode::EXTENDED_HEADERS, OptionCode::GO] {
        let server = if option == OptionCode::GO {
            says(&[EXT, (option, OptionReplyCode::ERR_TLS_REQD, b"")])
        } else {
            says(&[(option, OptionReplyCode::ERR_TLS_REQD, b"")])
        };
        assert_eq!(
            error(enter("", &[]), &server),
            PeerIncompatible::TlsRequired.into()
        );
    }
}

#[test]
fn broken_rules_of_go_are_noticed() {
    let go = |replies: &[(OptionReplyCode, &[u8])]| {
        let mut all = vec![EXT];
        all.extend(
            replies
                .iter()
                .map(|(reply, data)| (OptionCode::GO, *reply, *data)),
        );
        error(enter("", &[]), &says(&all))
    };
    let info = OptionReplyCode::INFO;
    assert_eq!(go(&[(ACK, b"")]), PeerMisbehaved::NoExportInfo.into());
    assert_eq!(
        go(&[(info, EXPORT_INFO), (ACK, b"x")]),
        PeerMisbehaved::AckWithData(OptionCode::GO).into()
    );
    assert_eq!(
        go(&[(info, EXPORT_INFO), (info, EXPORT_INFO)]),
        PeerMisbehaved::DuplicateInfo(InfoCode::EXPORT).into()
    );
    assert_eq!(
        go(&[(OptionReplyCode::SERVER, b"\0\0\0\0")]),
        PeerMisbehaved::UnexpectedOptionReply {
            option: OptionCode::GO,
            reply: OptionReplyCode::SERVER
        }
        .into()
    );
    assert_eq!(
        go(&[(info, b"\0\0\0\0\0\0\0\x10\0\0\0\0"), (ACK, b"")]),
        PeerMisbehaved::NoTransmissionFlags.into()
    );
    assert_eq!(
        go(&[(UNSUP, b"")]),
        PeerMisbehaved::NoGoAfterExtendedHeaders.into()
    );
    assert!(matches!(go(&[(info, b"\0\0\0")]), ProtocolError::Decode(_)));
    assert!(matches!(
        go(&[(info, b"\0\x03\0\0\x03\0\0\0\x10\0\0\x10\0\0")]),
        ProtocolError::Misbehaved(PeerMisbehaved::BadBlockSizes { .. })
    ));
}

#[test]
fn flags_that_the_session_cannot_have_are_forgotten() {
    const DF_AND_FILTER: TransmissionFlags =
        TransmissionFlags::SEND_DF.with(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    let offered = TransmissionFlags::HAS_FLAGS.with(DF_AND_FILTER);
    let info = [
        &[0, 0, 0, 0, 0, 0, 0, 0, 16, 0][..],
        &offered.to_wire().to_be_bytes(),
    ]
    .concat();
    let go = [
        (OptionCode::GO, OptionReplyCode::INFO, &info[..]),
        (OptionCode::GO, ACK, b""),
    ];
    let no_ext = (OptionCode::EXTENDED_HEADERS, UNSUP, &b""[..]);
    for (style, raised, kept) in [
        (
            HeaderStyle::Simple,
            vec![no_ext, (OptionCode::STRUCTURED_REPLY, UNSUP, b"")],
            TransmissionFlags::NONE,
        ),
        (
            HeaderStyle::Structured,
            vec![no_ext, (OptionCode::STRUCTURED_REPLY, ACK, b"")],
            TransmissionFlags::SEND_DF,
        ),
        (HeaderStyle::Extended, vec![EXT], DF_AND_FILTER),
    ] {
        let server = says(&[&raised[..], &go].concat());
        let Ok(ClientProgress::Done(Outcome::Transmission(session))) =
            listen(enter("", &[]), &server, usize::MAX).0
        else {
            panic!("{style:?}");
        };
        assert_eq!(session.style, style);
        assert_eq!(session.export.flags, TransmissionFlags::HAS_FLAGS.with(kept));
    }
}

#[test]
fn size_limit_is_exact() {
    let size = |size: u64| {
        let info = [&[0, 0][..], &size.to_be_bytes(), &[0, 1]].concat();
        let server = says(&[
            EXT,
            (OptionCode::GO, OptionReplyCode::INFO, &info),
            (OptionCode::GO, ACK, b""),
        ]);
        listen(enter("", &[]), &server, usize::MAX).0
    };
    assert!(size(MAX_EXPORT_SIZE - 1).is_ok() && size(MAX_EXPORT_SIZE).is_ok());
    for too_large in [MAX_EXPORT_SIZE + 1, u64::MAX] {
        assert_eq!(
            size(too_large),
            Err(PeerIncompatible::ExportTooLarge(too_large).into())
        );
    }
}

#[test]
fn replies_to_the_wrong_option_and_giant_replies_are_refused_at_once() {
    assert_eq!(
        error(enter("", &[]), &says(&[(OptionCode::GO, ACK, b"")])),
        PeerMisbehaved::WrongOption {
            expected: OptionCode::EXTENDED_HEADERS,
            found: OptionCode::GO
        }
        .into()
    );
    let giant = |length: u32| {
        let mut server = BytesMut::from(GREETING);
        server.put_slice(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\0\0\0\x02");
        server.put_u32(length);
        listen(Goal::ListExports, &server, usize::MAX).0
    };
    for length in [MAX_OPTION_REPLY - 1, MAX_OPTION_REPLY] {
        assert_eq!(giant(length), Ok(ClientProgress::NeedInput));
    }
    for length in [MAX_OPTION_REPLY + 1, u32::MAX] {
        let option = OptionCode::LIST;
        assert_eq!(
            giant(length),
            Err(PeerMisbehaved::OptionReplyTooLong { option, length }.into())
        );
    }
}

#[test]
fn lists_end() {
    let endless = |data: &[u8], count: usize| {
        let entry = (OptionCode::LIST, OptionReplyCode::SERVER, data);
        let mut server = says(&vec![entry; count]);
        encode_option_reply(OptionCode::LIST, ACK, &[], &mut server);
        listen(Goal::ListExports, &server, usize::MAX).0
    };
    assert!(endless(b"\0\0\0\x01n", MAX_LISTED).is_ok());
    let error = Err(PeerMisbehaved::EndlessReplies(OptionCode::LIST).into());
    assert_eq!(endless(b"\0\0\0\x01n", MAX_LISTED + 1), error);
    let long = [&4096_u32.to_be_bytes()[..], &[b'n'; 4096]].concat();
    assert!(endless(&long, MAX_LISTED_BYTES / long.len()).is_ok());
    assert_eq!(endless(&long, MAX_LISTED_BYTES / long.len() + 1), error);
}

#[test]
fn list_entries_that_lie_are_refused() {
    for data in [&b"\0\0\0\x05n"[..], b"\xff\xff\xff\xffn", b"", b"\0\0\0\x02n\0"] {
        let server = says(&[(OptionCode::LIST, OptionReplyCode::SERVER, data)]);
        assert!(matches!(
            error(Goal::ListExports, &server),
            ProtocolError::Decode(_)
        ));
    }
}

#[test]
fn selections_that_were_not_asked_for_are_refused() {
    let select = |replies: &[&[u8]]| {
        let mut all = vec![EXT];
        all.extend(
            replies
                .iter()
                .map(|data| (OptionCode::SET_META_CONTEXT, OptionReplyCode::META_CONTEXT, *data)),
        );
        all.push((OptionCode::SET_META_CONTEXT, ACK, b""));
        error(enter("", &["base:allocation", "x-a:b"]), &says(&all))
    };
    assert_eq!(
        select(&[b"\0\0\0\x01x-a:c"]),
        PeerMisbehaved::UnaskedContext.into()
    );
    let twice = PeerMisbehaved::DuplicateContext(ContextId(1)).into();
    assert_eq!(select(&[b"\0\0\0\x01x-a:b", b"\0\0\0\x01base:allocation"]), twice);
    assert_eq!(select(&[b"\0\0\0\x02x-a:b", b"\0\0\0\x01x-a:b"]), twice);
    assert!(matches!(
        select(&[b"\0\0\0\x01nocolon"]),
        ProtocolError::Decode(_)
    ));
}

#[test]
fn the_client_leaves_politely() {
    let abort = b"IHAVEOPT\0\0\0\x02\0\0\0\0";
    let (_, sent) = listen(Goal::ListExports, &says(&[(OptionCode::LIST, ACK, b"")]), 9);
    assert!(sent.ends_with(abort));
    let refused = says(&[EXT, (OptionCode::GO, OptionReplyCode::ERR_UNKNOWN, b"no")]);
    let (_, sent) = listen(enter("x", &[]), &refused, 9);
    assert!(sent.ends_with(abort));
}

#[test]
fn every_split_of_the_input_gives_the_same() {
    let server = says(&[
        EXT,
        (
            OptionCode::SET_META_CONTEXT,
            OptionReplyCode::META_CONTEXT,
            b"\0\0\0\x07base:allocation",
        ),
        (OptionCode::SET_META_CONTEXT, ACK, b""),
        (OptionCode::GO, OptionReplyCode::INFO, EXPORT_INFO),
        (OptionCode::GO, OptionReplyCode::INFO, b"\0\x02text"),
        (OptionCode::GO, OptionReplyCode::INFO, b"\x77\x77whatever"),
        (OptionCode::GO, ACK, b""),
    ]);
    let whole = listen(enter("e", &["base:allocation"]), &server, usize::MAX);
    assert!(matches!(whole.0, Ok(ClientProgress::Done(_))));
    for piece in 1..server.len() {
        assert_eq!(listen(enter("e", &["base:allocation"]), &server, piece), whole);
    }
}

proptest! {
    #[test]
    fn arbitrary_replies_never_panic(
        replies in proptest::collection::vec(
            (1u32..12, prop_oneof![0u32..6, Just(1 << 31 | 1), any::<u32>()],
             proptest::collection::vec(any::<u8>(), 0..24)), 0..12),
        junk in proptest::collection::vec(any::<u8>(), 0..64),
        piece in 1usize..50, goal in 0..3,
    ) {
        let goal = match goal {
            0 => Goal::ListExports,
            1 => Goal::ListContexts { export: name("e"), queries: vec![] },
            _ => enter("e", &["base:allocation"]),
        };
        let replies: Vec<_> = replies
            .iter()
            .map(|(option, reply, data)| (OptionCode(*option), OptionReplyCode(*reply), &data[..]))
            .collect();
        let mut server = says(&replies);
        server.put_slice(&junk);
        let _ = listen(goal.clone(), &server, piece);
        let _ = listen(goal, &junk, piece);
    }
}
