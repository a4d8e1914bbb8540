//! STARTTLS.

use super::*;
use crate::proto::error::{PeerIncompatible, PeerMisbehaved};
use crate::proto::option::{ContextRequest, InfoRequest, encode_option_reply};

const ACK: OptionReplyCode = OptionReplyCode::ACK;
const INVALID: OptionReplyCode = OptionReplyCode::ERR_INVALID;
const TLS_REQD: OptionReplyCode = OptionReplyCode::ERR_TLS_REQD;

fn requiring() -> ServerHandshake {
    ServerHandshake::start(&mut BytesMut::new()).requiring_tls()
}

fn codes(answers: &Answers) -> Vec<OptionReplyCode> {
    answers.replies.iter().map(|(_, reply, _)| *reply).collect()
}

fn go() -> BytesMut {
    let mut data = BytesMut::new();
    let request = InfoRequest {
        name: name("disk"),
        infos: vec![],
    };
    request.encode(&mut data);
    data
}

fn set() -> BytesMut {
    let mut data = BytesMut::new();
    let request = ContextRequest {
        export: name("disk"),
        queries: vec![context("base:allocation")],
    };
    request.encode(&mut data);
    data
}

#[test]
fn a_server_without_tls_says_so() {
    let answers = ask(
        &options(3, &[(OptionCode::STARTTLS, b""), (OptionCode::LIST, b"")]),
        99,
    );
    assert_eq!(codes(&answers)[0], OptionReplyCode::ERR_POLICY);
    assert_eq!(codes(&answers).last(), Some(&ACK), "the session goes on");
}

#[test]
fn nothing_is_told_before_tls() {
    for option in (0..12).chain([99, u32::MAX]).map(OptionCode) {
        let known = [OptionCode::STARTTLS, OptionCode::ABORT, OptionCode::EXPORT_NAME];
        if known.contains(&option) {
            continue;
        }
        let answers = ask_server(&mut requiring(), &options(3, &[(option, &go())]), 99);
        assert_eq!(codes(&answers), [TLS_REQD], "{option}");
        assert_eq!(answers.end, Ok(Progress::NeedInput));
    }
    for export in ["disk", "", "nothing"] {
        let sent = options(3, &[(OptionCode::EXPORT_NAME, export.as_bytes())]);
        let answers = ask_server(&mut requiring(), &sent, 99);
        assert_eq!(answers.end, Err(ProtocolError::ExportNameRefused));
        assert!(answers.raw.is_empty());
    }
    let answers = ask_server(&mut requiring(), &options(3, &[(OptionCode::ABORT, b"")]), 99);
    assert_eq!((codes(&answers), answers.end), (vec![ACK], Ok(Progress::Closed)));
}

#[test]
fn starttls_has_no_data_and_comes_once() {
    let mut server = requiring();
    let answers = ask_server(&mut server, &options(3, &[(OptionCode::STARTTLS, b"x")]), 99);
    assert_eq!(codes(&answers), [INVALID]);
    let answers = ask_server(&mut server, &options(3, &[(OptionCode::STARTTLS, b"")])[4..], 99);
    assert_eq!(
        (codes(&answers), answers.end),
        (vec![ACK], Ok(Progress::StartTls))
    );
    server.secured();
    let sent = options(3, &[(OptionCode::STARTTLS, b""), (OptionCode::GO, &go())]);
    let answers = ask_server(&mut server, &sent[4..], 99);
    assert_eq!(codes(&answers)[0], INVALID);
    assert!(matches!(answers.end, Ok(Progress::Transmission(_))));
}

#[test]
fn bytes_behind_starttls_end_the_session() {
    let sent = options(
        3,
        &[(OptionCode::STARTTLS, b""), (OptionCode::STRUCTURED_REPLY, b"")],
    );
    let refused = Err(PeerMisbehaved::BytesBeforeTls.into());
    let answers = ask_server(&mut requiring(), &sent, usize::MAX);
    assert_eq!(answers.end, refused);
    assert!(answers.raw.is_empty());
    // One byte is enough.
    assert_eq!(ask_server(&mut requiring(), &sent[..21], usize::MAX).end, refused);
    assert_eq!(
        ask_server(&mut requiring(), &sent[..20], usize::MAX).end,
        Ok(Progress::StartTls)
    );
}

/// A server that has TLS takes none of these before it, but should it ever: what was in force in the clear is not in force inside
/// (CVE-2021-3716).
#[test]
fn what_was_negotiated_before_tls_is_forgotten() {
    for style in [OptionCode::STRUCTURED_REPLY, OptionCode::EXTENDED_HEADERS] {
        let mut server = ServerHandshake::start(&mut BytesMut::new());
        let sent = options(3, &[(style, b""), (OptionCode::SET_META_CONTEXT, &set())]);
        let meta = OptionReplyCode::META_CONTEXT;
        assert_eq!(codes(&ask_server(&mut server, &sent, 99)), [ACK, meta, ACK]);
        server.secured();
        let answers = ask_server(&mut server, &options(3, &[(OptionCode::GO, &go())])[4..], 99);
        let Ok(Progress::Transmission(session)) = answers.end else {
            panic!("{:?}", answers.end);
        };
        assert_eq!((session.style, session.contexts), (HeaderStyle::Simple, vec![]));
    }
}

fn both(client_wants: bool, server_wants: bool) -> (Result<Outcome, ProtocolError>, Option<Negotiated>) {
    let mut to_client = BytesMut::new();
    let mut server = ServerHandshake::start(&mut to_client);
    let mut client = ClientHandshake::new(enter("disk", &["base:allocation"]), HeaderStyle::Extended);
    if server_wants {
        server = server.requiring_tls();
    }
    if client_wants {
        client = client.requiring_tls();
    }
    run_machines(client, server, to_client)
}

#[test]
fn both_sides_agree_inside_tls() {
    let (outcome, server) = both(true, true);
    let Ok(Outcome::Transmission(client)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(client.style, HeaderStyle::Extended);
    assert_eq!(client.contexts.len(), 1);
    assert_eq!(Some(*client), server);
}

#[test]
fn one_side_alone_has_no_session() {
    let (outcome, server) = both(false, true);
    assert_eq!(outcome, Err(PeerIncompatible::TlsRequired.into()));
    assert_eq!(server, None);
    let (outcome, server) = both(true, false);
    let Err(ProtocolError::Refused(refused)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        (refused.option, refused.reply),
        (OptionCode::STARTTLS, OptionReplyCode::ERR_POLICY)
    );
    assert_eq!(server, None);
}

/// What a client that wants TLS does with a server that says this, and what it sends.
fn dial(greeting: &[u8], answer: &[u8], goal: Goal) -> (Result<ClientProgress, ProtocolError>, BytesMut) {
    let mut client = ClientHandshake::new(goal, HeaderStyle::Extended).requiring_tls();
    let (mut input, mut output) = (BytesMut::from(greeting), BytesMut::new());
    let begun = client.advance(&mut input, &mut output);
    if begun != Ok(ClientProgress::NeedInput) {
        return (begun, output);
    }
    output.clear();
    input.extend_from_slice(answer);
    (client.advance(&mut input, &mut output), output)
}

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

fn reply(option: OptionCode, reply: OptionReplyCode, data: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    encode_option_reply(option, reply, data, &mut out);
    out
}

/// CVE-2019-14842: a client that wants TLS goes without it in no case, and asks for nothing before it.
#[test]
fn nothing_leads_around_tls() {
    let goals = || [enter("disk", &[]), Goal::ListExports];
    for goal in goals() {
        for code in (1..=10).map(|n| 1 << 31 | n) {
            let refusal = reply(OptionCode::STARTTLS, OptionReplyCode(code), b"no");
            let (end, sent) = dial(GREETING, &refusal, goal.clone());
            let Err(ProtocolError::Refused(refused)) = end else {
                panic!("{end:?}");
            };
            assert_eq!(refused.option, OptionCode::STARTTLS);
            let mut goodbye = BytesMut::new();
            encode_option(OptionCode::ABORT, b"", &mut goodbye);
            assert_eq!(sent, goodbye);
        }
        for flags in [0, 2] {
            let old = [&GREETING[..17], &[flags]].concat();
            let (end, sent) = dial(&old, b"", goal.clone());
            assert_eq!(end, Err(PeerIncompatible::NoTls.into()));
            assert!(sent.is_empty());
        }
        let (end, _) = dial(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53", b"", goal.clone());
        assert_eq!(end, Err(PeerIncompatible::Oldstyle.into()));
        for wrong in [
            reply(OptionCode::STARTTLS, OptionReplyCode::INFO, b""),
            reply(OptionCode::STARTTLS, OptionReplyCode::SERVER, b"\0\0\0\0"),
            reply(OptionCode::STARTTLS, ACK, b"x"),
            reply(OptionCode::LIST, ACK, b""),
        ] {
            let (end, _) = dial(GREETING, &wrong, goal.clone());
            assert!(matches!(end, Err(ProtocolError::Misbehaved(_))), "{end:?}");
        }
    }
}

#[test]
fn bytes_behind_the_ack_end_the_session() {
    let mut answer = reply(OptionCode::STARTTLS, ACK, b"");
    let (end, sent) = dial(GREETING, &answer, enter("disk", &[]));
    assert_eq!(end, Ok(ClientProgress::StartTls));
    assert!(sent.is_empty(), "nothing is sent in the clear any more");
    answer.extend_from_slice(&reply(OptionCode::EXTENDED_HEADERS, ACK, b""));
    for length in [21, answer.len()] {
        let (end, _) = dial(GREETING, &answer[..length], enter("disk", &[]));
        assert_eq!(end, Err(PeerMisbehaved::BytesBeforeTls.into()));
    }
}
