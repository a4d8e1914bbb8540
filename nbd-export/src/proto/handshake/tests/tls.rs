//! STARTTLS.

use super::*;
use crate::proto::error::PeerMisbehaved;
use crate::proto::option::{ContextRequest, InfoRequest};

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
