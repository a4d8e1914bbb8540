//! Our server against hand-written clients.

use bytes::BufMut;
use proptest::prelude::*;

use super::*;
use crate::proto::constants::InfoCode;
use crate::proto::error::PeerMisbehaved;
use crate::proto::flags::ClientFlags;
use crate::proto::limits::MAX_OPTION_DATA;
use crate::proto::option::{ContextRequest, InfoRequest};
use crate::proto::text::ErrorText;

fn go(export: &str, infos: &[InfoCode]) -> BytesMut {
    let mut data = BytesMut::new();
    InfoRequest {
        name: name(export),
        infos: infos.to_vec(),
    }
    .encode(&mut data);
    data
}

fn set(export: &str, queries: &[&str]) -> BytesMut {
    let mut data = BytesMut::new();
    ContextRequest {
        export: name(export),
        queries: queries.iter().copied().map(context).collect(),
    }
    .encode(&mut data);
    data
}

/// The codes of the replies to these options.
fn codes(sent: &[(OptionCode, &[u8])]) -> Vec<OptionReplyCode> {
    let answers = ask(&options(3, sent), usize::MAX);
    answers.replies.iter().map(|(_, reply, _)| *reply).collect()
}

const ACK: OptionReplyCode = OptionReplyCode::ACK;
const INFO: OptionReplyCode = OptionReplyCode::INFO;
const META: OptionReplyCode = OptionReplyCode::META_CONTEXT;
const INVALID: OptionReplyCode = OptionReplyCode::ERR_INVALID;

#[test]
fn unknown_client_flags_end_the_session() {
    for flags in [4, 5, 1 << 31] {
        let unknown = ClientFlags::from_wire(flags & !3);
        assert_eq!(
            ask(&options(flags, &[]), 99).end,
            Err(PeerMisbehaved::UnknownClientFlags(unknown).into())
        );
    }
    for flags in 0..4 {
        assert_eq!(ask(&options(flags, &[]), 99).end, Ok(Progress::NeedInput));
    }
}

#[test]
fn only_export_name_works_without_fixed_newstyle() {
    let answers = ask(&options(0, &[(OptionCode::LIST, &[])]), 99);
    assert_eq!(
        answers.end,
        Err(PeerMisbehaved::OptionWithoutFixedNewstyle(OptionCode::LIST).into())
    );
    let answers = ask(&options(0, &[(OptionCode::EXPORT_NAME, b"disk")]), 99);
    assert!(matches!(answers.end, Ok(Progress::Transmission(_))));
}

#[test]
fn golden_export_name_with_and_without_zeroes() {
    // 1 TiB; all flags that a session of simple replies can have.
    let answer = b"\0\0\x01\0\0\0\0\0\x0d\x7f";
    let with = ask(&options(1, &[(OptionCode::EXPORT_NAME, b"disk")]), 99);
    assert_eq!(with.raw.len(), 134);
    assert_eq!(&with.raw[..10], answer);
    assert_eq!(with.raw[10..], [0; 124]);
    let without = ask(&options(3, &[(OptionCode::EXPORT_NAME, b"disk")]), 99);
    assert_eq!(&without.raw[..], answer);
}

#[test]
fn export_name_for_nothing_ends_the_session_without_a_byte() {
    for bad in [&b"nothing"[..], b"n\0n", b"\xff", &[b'n'; 4097]] {
        let answers = ask(&options(3, &[(OptionCode::EXPORT_NAME, bad)]), usize::MAX);
        assert!(answers.end.is_err() && answers.raw.is_empty());
    }
    let late = ask(
        &options(
            3,
            &[
                (OptionCode::EXTENDED_HEADERS, &[]),
                (OptionCode::EXPORT_NAME, b"disk"),
            ],
        ),
        usize::MAX,
    );
    assert_eq!(
        late.end,
        Err(PeerMisbehaved::ExportNameAfterExtendedHeaders.into())
    );
}

#[test]
fn info_then_go_tell_the_same() {
    let data = go(
        "disk",
        &[
            InfoCode::BLOCK_SIZE,
            InfoCode::NAME,
            InfoCode::DESCRIPTION,
            InfoCode(99),
        ],
    );
    let answers = ask(
        &options(3, &[(OptionCode::INFO, &data), (OptionCode::GO, &data)]),
        99,
    );
    let (info, go) = answers.replies.split_at(5);
    let strip = |replies: &[(OptionCode, OptionReplyCode, Vec<u8>)]| -> Vec<_> {
        replies
            .iter()
            .map(|(_, reply, data)| (*reply, data.clone()))
            .collect()
    };
    assert_eq!(strip(info), strip(go));
    let wanted: [(_, &[u8]); 5] = [
        // 1 TiB; all flags that a session of simple replies can have.
        (INFO, b"\0\0\0\0\x01\0\0\0\0\0\x0d\x7f"),
        (INFO, b"\0\x01disk"),
        (INFO, b"\0\x02a disk"),
        (INFO, b"\0\x03\0\0\x02\0\0\0\x10\0\0\x10\0\0"),
        (ACK, b""),
    ];
    assert_eq!(strip(info), wanted.map(|(reply, data)| (reply, data.to_vec())));
    assert!(matches!(answers.end, Ok(Progress::Transmission(_))));
}

#[test]
fn a_failed_go_leaves_the_session_open() {
    let (bad, good) = (go("nothing", &[]), go("disk", &[]));
    let answers = ask(
        &options(3, &[(OptionCode::GO, &bad), (OptionCode::GO, &good)]),
        99,
    );
    assert_eq!(answers.replies[0].1, OptionReplyCode::ERR_UNKNOWN);
    assert_eq!(answers.replies.len(), 3);
    assert!(matches!(answers.end, Ok(Progress::Transmission(_))));
}

#[test]
fn names_that_are_too_long_or_lie_are_invalid() {
    let long = [&4097_u32.to_be_bytes()[..], &[b'n'; 4097], &[0, 0]].concat();
    for data in [
        &long[..],
        b"\xff\xff\xff\xffn\0\0",
        b"\0\0\0\x02nn\0\0x",
        b"\0\0\0\x03n\0n\0\0",
        b"",
    ] {
        assert_eq!(codes(&[(OptionCode::GO, data)]), [INVALID]);
        assert_eq!(codes(&[(OptionCode::INFO, data)]), [INVALID]);
    }
    let long = [&4097_u32.to_be_bytes()[..], &[b'n'; 4097], &[0, 0, 0, 0]].concat();
    assert_eq!(
        codes(&[
            (OptionCode::STRUCTURED_REPLY, &[]),
            (OptionCode::SET_META_CONTEXT, &long)
        ]),
        [ACK, INVALID]
    );
}

#[test]
fn option_length_limit_is_exact() {
    let header = |length: u32| {
        let mut out = options(3, &[]);
        out.put_slice(b"IHAVEOPT\0\0\0\x63");
        out.put_u32(length);
        out
    };
    for length in [MAX_OPTION_DATA - 1, MAX_OPTION_DATA] {
        assert_eq!(ask(&header(length), 99).end, Ok(Progress::NeedInput));
    }
    // Refused at once: not one byte of the data is awaited.
    for length in [MAX_OPTION_DATA + 1, u32::MAX] {
        let option = OptionCode(0x63);
        assert_eq!(
            ask(&header(length), 99).end,
            Err(PeerMisbehaved::OptionTooLong { option, length }.into())
        );
    }
}

#[test]
fn options_that_are_not_built_are_answered() {
    assert_eq!(
        codes(&[
            (OptionCode::PEEK_EXPORT, &[]),
            (OptionCode::STARTTLS, &[]),
            (OptionCode::STARTTLS, b"x"),
            (OptionCode(4711), b"data"),
            (OptionCode::LIST, b"x"),
            (OptionCode::ABORT, b"ignored"),
        ]),
        [
            OptionReplyCode::ERR_UNSUP,
            OptionReplyCode::ERR_POLICY,
            INVALID,
            OptionReplyCode::ERR_UNSUP,
            INVALID,
            ACK
        ]
    );
}

#[test]
fn abort_closes_and_bad_magic_ends() {
    let answers = ask(&options(3, &[(OptionCode::ABORT, &[])]), 99);
    assert_eq!(answers.end, Ok(Progress::Closed));
    assert_eq!(answers.replies, [(OptionCode::ABORT, ACK, vec![])]);
    let mut wrong = options(3, &[]);
    wrong.put_slice(b"IHAVEOPX");
    assert!(matches!(ask(&wrong, 99).end, Err(ProtocolError::Decode(_))));
}

#[test]
fn styles_are_raised_once_each() {
    let (structured, extended) = (OptionCode::STRUCTURED_REPLY, OptionCode::EXTENDED_HEADERS);
    assert_eq!(
        codes(&[(structured, &[]), (structured, &[]), (extended, b"x")]),
        [ACK, INVALID, INVALID]
    );
    assert_eq!(
        codes(&[(extended, &[]), (extended, &[]), (structured, &[])]),
        [ACK, INVALID, OptionReplyCode::ERR_EXT_HEADER_REQD]
    );
}

/// The name of an export, and a query as it travels.
fn query(query: &[u8]) -> BytesMut {
    let mut data = BytesMut::from(&b"\0\0\0\x04disk\0\0\0\x01"[..]);
    data.put_u32(u32::try_from(query.len()).unwrap());
    data.put_slice(query);
    data
}

#[test]
fn queries_that_are_no_names_are_invalid() {
    for bad in [&b""[..], b"base", b"base:\0", b":", b":leaf", b"\xff:x"] {
        let data = query(bad);
        for option in [OptionCode::SET_META_CONTEXT, OptionCode::LIST_META_CONTEXT] {
            assert_eq!(
                codes(&[(OptionCode::STRUCTURED_REPLY, &[]), (option, &data)]),
                [ACK, INVALID],
                "{bad:x?}"
            );
        }
    }
    assert_eq!(
        codes(&[
            (OptionCode::STRUCTURED_REPLY, &[]),
            (OptionCode::SET_META_CONTEXT, &query(b"base:allocation"))
        ]),
        [ACK, META, ACK]
    );
}

/// Our stores can tell that zeroes would not be fast, but some take none at all.
#[test]
fn fast_zeroes_are_offered_only_with_zeroes() {
    struct NoZeroes;
    impl Catalogue for NoZeroes {
        fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
            Shelf.list()
        }
        fn describe(&self, name: &str) -> Result<ExportInfo, Refusal> {
            let export = Shelf.describe(name)?;
            let flags = export.flags.without(TransmissionFlags::SEND_WRITE_ZEROES);
            Ok(ExportInfo { flags, ..export })
        }
        fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
            Shelf.contexts(name, style)
        }
    }
    let mut input = options(3, &[(OptionCode::GO, &go("disk", &[]))]);
    let mut server = ServerHandshake::start(&mut BytesMut::new());
    let session = loop {
        match server.advance(&mut input, &mut BytesMut::new(), &NoZeroes) {
            Ok(Progress::Continue) => {}
            Ok(Progress::Transmission(session)) => break session,
            other => panic!("{other:?}"),
        }
    };
    assert!(!session.offers(TransmissionFlags::SEND_FAST_ZERO));
    assert!(session.offers(TransmissionFlags::SEND_TRIM));
}

#[test]
fn contexts_need_chunks() {
    let data = set("disk", &["base:allocation"]);
    assert_eq!(
        codes(&[
            (OptionCode::SET_META_CONTEXT, &data),
            (OptionCode::LIST_META_CONTEXT, &data)
        ]),
        [INVALID, INVALID]
    );
}

#[test]
fn a_wildcard_selects_nothing_and_a_duplicate_once() {
    let structured = (OptionCode::STRUCTURED_REPLY, &[][..]);
    let select = |queries: &[&str]| {
        let data = set("disk", queries);
        codes(&[structured, (OptionCode::SET_META_CONTEXT, &data)])
    };
    assert_eq!(select(&["base:"]), [ACK, ACK]);
    assert_eq!(select(&[]), [ACK, ACK]);
    assert_eq!(select(&["x-unknown:leaf"]), [ACK, ACK]);
    assert_eq!(select(&["base:allocation", "base:allocation"]), [ACK, META, ACK]);
}

#[test]
fn a_selection_is_replaced_by_the_next_even_if_that_fails() {
    let contexts = |sets: &[&[u8]], export: &str| {
        let data = go(export, &[]);
        let mut sent = vec![(OptionCode::EXTENDED_HEADERS, &[][..])];
        sent.extend(sets.iter().map(|set| (OptionCode::SET_META_CONTEXT, *set)));
        sent.push((OptionCode::GO, &data));
        match ask(&options(3, &sent), 99).end {
            Ok(Progress::Transmission(session)) => session.contexts,
            other => panic!("{other:?}"),
        }
    };
    let good = set("disk", &["base:allocation"]);
    let bad = set("nothing", &["base:allocation"]);
    assert_eq!(contexts(&[&good], "disk").len(), 1);
    assert_eq!(contexts(&[&good, &bad], "disk"), []);
    assert_eq!(contexts(&[&good, b"junk"], "disk"), []);
    // The selection belongs to the name that it was made for.
    assert_eq!(contexts(&[&good], "nn"), []);
    // An id is not used again for another selection.
    let again = set("disk", &["x-volmap:generation"]);
    assert_ne!(
        contexts(&[&good, &again], "disk")[0].id,
        contexts(&[&good], "disk")[0].id
    );
}

#[test]
fn block_sizes_are_told_when_asked_for() {
    assert_eq!(codes(&[(OptionCode::INFO, &go("disk", &[]))]), [INFO, ACK]);
    let told = ask(
        &options(3, &[(OptionCode::INFO, &go("disk", &[InfoCode::BLOCK_SIZE]))]),
        99,
    );
    assert_eq!(told.replies[1].2, b"\0\x03\0\0\x02\0\0\0\x10\0\0\x10\0\0");
}

#[test]
fn every_split_of_the_input_gives_the_same() {
    let (set, bad, good) = (
        set("disk", &["base:allocation", "x-volmap:generation"]),
        go("nothing", &[]),
        go("disk", &[InfoCode::NAME]),
    );
    let client = options(
        3,
        &[
            (OptionCode::LIST, &[]),
            (OptionCode::EXTENDED_HEADERS, &[]),
            (OptionCode::SET_META_CONTEXT, &set),
            (OptionCode::GO, &bad),
            (OptionCode(99), b"xyz"),
            (OptionCode::GO, &good),
        ],
    );
    let whole = ask(&client, usize::MAX);
    for piece in 1..client.len() {
        let split = ask(&client, piece);
        assert_eq!((split.raw, split.end), (whole.raw.clone(), whole.end.clone()));
    }
}

proptest! {
    #[test]
    fn arbitrary_options_never_panic(
        flags in 0u32..4,
        sent in proptest::collection::vec((0u32..13, proptest::collection::vec(any::<u8>(), 0..40)), 0..9),
        junk in proptest::collection::vec(any::<u8>(), 0..64),
        piece in 1usize..50,
    ) {
        let sent: Vec<_> = sent.iter().map(|(code, data)| (OptionCode(*code), &data[..])).collect();
        let mut client = options(flags, &sent);
        client.put_slice(&junk);
        let _ = ask(&client, piece);
        let _ = ask(&junk, piece);
    }

    #[test]
    fn well_formed_options_in_any_order_never_panic(
        order in proptest::collection::vec(0usize..9, 0..12),
    ) {
        let (list, select, good, bad) =
            (set("disk", &["x-volmap:"]), set("disk", &["base:allocation"]), go("disk", &[]), go("x", &[]));
        let all: [(OptionCode, &[u8]); 9] = [
            (OptionCode::LIST, &[]), (OptionCode::STRUCTURED_REPLY, &[]), (OptionCode::EXTENDED_HEADERS, &[]),
            (OptionCode::LIST_META_CONTEXT, &list), (OptionCode::SET_META_CONTEXT, &select),
            (OptionCode::INFO, &good), (OptionCode::GO, &bad), (OptionCode::GO, &good),
            (OptionCode::EXPORT_NAME, b"disk"),
        ];
        let sent: Vec<_> = order.iter().map(|n| all[*n]).collect();
        let answers = ask(&options(3, &sent), usize::MAX);
        // Contexts are never there without chunks to answer in.
        if let Ok(Progress::Transmission(session)) = answers.end {
            prop_assert!(session.style != HeaderStyle::Simple || session.contexts.is_empty());
        }
    }
}

#[test]
fn a_server_that_goes_away_says_so_to_every_option() {
    let going = |tls| {
        let mut server = ServerHandshake::start(&mut BytesMut::new());
        if tls {
            server = server.requiring_tls();
        }
        server.shut_down();
        server
    };
    for tls in [false, true] {
        for option in (0..12).chain([99, u32::MAX]).map(OptionCode) {
            if [OptionCode::ABORT, OptionCode::EXPORT_NAME].contains(&option) {
                continue;
            }
            let data = go("disk", &[]);
            let sent = options(3, &[(option, &data), (OptionCode::ABORT, b"")]);
            let answers = ask_server(&mut going(tls), &sent, usize::MAX);
            let told: Vec<_> = answers.replies.iter().map(|(_, reply, _)| *reply).collect();
            assert_eq!(told, [OptionReplyCode::ERR_SHUTDOWN, ACK], "{option}");
            assert_eq!(answers.end, Ok(Progress::Closed));
        }
        let sent = options(3, &[(OptionCode::EXPORT_NAME, b"disk")]);
        let answers = ask_server(&mut going(tls), &sent, usize::MAX);
        assert_eq!(answers.end, Err(ProtocolError::ExportNameRefused));
        assert!(answers.raw.is_empty());
    }
    // Half of an option was here before.
    let mut server = ServerHandshake::start(&mut BytesMut::new());
    let sent = options(3, &[(OptionCode::LIST, b"")]);
    let (mut input, mut output) = (BytesMut::from(&sent[..9]), BytesMut::new());
    while server.advance(&mut input, &mut output, &Shelf) == Ok(Progress::Continue) {}
    server.shut_down();
    let rest = ask_server(&mut server, &[&input[..], &sent[9..]].concat(), usize::MAX);
    assert_eq!(rest.replies[0].1, OptionReplyCode::ERR_SHUTDOWN);
}

/// What a client gets that enters an export which has to be made.
fn made(made: Result<ExportInfo, Refusal>) -> (Progress, Vec<(OptionReplyCode, Vec<u8>)>) {
    let mut raw = BytesMut::new();
    let mut server = ServerHandshake::start(&mut raw);
    let set = set("new", &["base:allocation", "x-volmap:generation"]);
    let go = go("new", &[InfoCode::NAME]);
    let asked = options(
        3,
        &[
            (OptionCode::STRUCTURED_REPLY, &[]),
            (OptionCode::SET_META_CONTEXT, &set),
            (OptionCode::GO, &go),
        ],
    );
    let waits = ask_server(&mut server, &asked, usize::MAX);
    assert_eq!(waits.end, Ok(Progress::Awaited(name("new"))));
    assert_eq!(waits.replies.len(), 3, "one context, and nothing about GO yet");
    let mut output = BytesMut::new();
    let progress = server.made(made, &mut output);
    let mut replies = Vec::new();
    let mut rest = &output[..];
    while let Ok(Some(header)) = OptionReplyHeader::decode(rest) {
        assert_eq!(header.option, OptionCode::GO);
        let whole = OPTION_REPLY_HEADER_LEN + header.length as usize;
        replies.push((header.reply, rest[OPTION_REPLY_HEADER_LEN..whole].to_vec()));
        rest = &rest[whole..];
    }
    assert!(rest.is_empty());
    // It is over either way: nothing is made twice for one GO.
    assert_eq!(
        server.made(Shelf.describe("disk"), &mut BytesMut::new()),
        Progress::Continue
    );
    (progress, replies)
}

#[test]
fn an_export_that_is_made_for_a_client_is_entered_by_the_name_that_it_asked_for() {
    let (progress, replies) = made(Shelf.describe("disk"));
    let Progress::Transmission(session) = progress else {
        panic!("{progress:?}");
    };
    assert_eq!(session.requested, name("new"));
    assert_eq!(session.export.name, name("disk"));
    assert_eq!(session.contexts.len(), 1, "what was selected before counts");
    let told: Vec<_> = replies.iter().map(|(reply, _)| *reply).collect();
    assert_eq!(told, [INFO, INFO, ACK]);
    assert_eq!(
        replies[1].1, b"\0\x01disk",
        "NBD_INFO_NAME tells what it is called"
    );
}

#[test]
fn an_export_that_could_not_be_made_is_refused_in_words_and_the_session_goes_on() {
    let text = |text: &str| ErrorText::new(text);
    for (refusal, code, words) in [
        (
            Refusal::NotNow(text("too many")),
            OptionReplyCode::ERR_POLICY,
            "too many",
        ),
        (
            Refusal::Failed(text("no room")),
            OptionReplyCode::ERR_PLATFORM,
            "no room",
        ),
        (
            Refusal::Shutdown,
            OptionReplyCode::ERR_SHUTDOWN,
            "the server is shutting down",
        ),
    ] {
        let (progress, replies) = made(Err(refusal));
        assert_eq!(progress, Progress::Continue);
        assert_eq!(replies, [(code, words.as_bytes().to_vec())]);
    }
}

#[test]
fn nothing_is_made_for_whoever_only_looks() {
    let info = go("new", &[]);
    assert_eq!(codes(&[(OptionCode::INFO, &info)]), [OptionReplyCode::ERR_POLICY]);
    let by_name = ask(&options(3, &[(OptionCode::EXPORT_NAME, b"new")]), usize::MAX);
    assert!(
        by_name.end.is_err() && by_name.raw.is_empty(),
        "it has no way to be refused"
    );
}
