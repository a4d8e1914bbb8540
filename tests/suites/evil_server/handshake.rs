//! Lies before transmission.

use nbd_export::proto::HeaderStyle;
use nbd_export::proto::constants::{OptionCode, OptionReplyCode};
use tests::evil_server::{Act, Script, option_reply};

use super::*;

const EXTENDED: HeaderStyle = HeaderStyle::Extended;
const LIST: OptionCode = OptionCode::LIST_META_CONTEXT;
const SET: OptionCode = OptionCode::SET_META_CONTEXT;
const GO: OptionCode = OptionCode::GO;
const ACK: OptionReplyCode = OptionReplyCode::ACK;
const INFO: OptionReplyCode = OptionReplyCode::INFO;
const META: OptionReplyCode = OptionReplyCode::META_CONTEXT;

type Replies<'a> = Vec<(OptionReplyCode, &'a [u8])>;

/// Answers one option with these replies.
fn answering(option: OptionCode, replies: &[(OptionReplyCode, &[u8])]) -> Script {
    let all: Vec<u8> = replies
        .iter()
        .flat_map(|(reply, data)| option_reply(option, *reply, data))
        .collect();
    Script::honest(EXTENDED).answers(option, move |_| Act::Say(all.clone()))
}

fn size_and_flags(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

#[test]
fn greetings_that_are_none() {
    assert_fails(
        "another protocol",
        MISBEHAVED,
        Script::honest(EXTENDED).greets(b"SSH-2.0-OpenSSH_9.2\r\n"),
    );
    assert_fails("zeroes", MISBEHAVED, Script::honest(EXTENDED).greets(&[0; 18]));
    let old = [b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53", &[0; 136][..]].concat();
    assert_fails(
        "the old handshake",
        INCOMPATIBLE,
        Script::honest(EXTENDED).greets(&old),
    );
}

/// CVE-2023-5215: a size that is negative as a signed number.
#[test]
fn sizes_over_2_to_the_63() {
    for size in [1 << 63, u64::MAX] {
        let info = size_and_flags(size, 3);
        assert_fails(
            "a giant export",
            INCOMPATIBLE,
            answering(GO, &[(INFO, &info), (ACK, b"")]),
        );
    }
}

/// A size of 2^63-1 is legal; nothing is allocated for it, and the first read fails.
#[test]
fn the_largest_size_takes_no_memory() {
    let info = size_and_flags(i64::MAX as u64, 3);
    let script = answering(GO, &[(INFO, &info), (ACK, b"")]).replies(|answer| match answer.read() {
        Some(_) => Some(Act::Say(answer.chunk(true, 0x8001, b"\0\0\0\x05\0\0"))),
        None => {
            let id = answer.session.contexts[0].id.0;
            Some(Act::Say(answer.status(true, id, &[(4096, 0)])))
        }
    });
    assert_fails("8 EiB", REFUSED, script);
}

#[test]
fn broken_rules_of_go() {
    let info = size_and_flags(SIZE as u64, 3);
    let no_flags = size_and_flags(SIZE as u64, 2);
    let cases: [(&str, Replies<'_>); 9] = [
        ("no size", vec![(ACK, b"")]),
        ("an ACK with data", vec![(INFO, &info), (ACK, b"x")]),
        ("two sizes", vec![(INFO, &info), (INFO, &info), (ACK, b"")]),
        ("no HAS_FLAGS", vec![(INFO, &no_flags), (ACK, b"")]),
        ("a short info", vec![(INFO, b"\0\0\0"), (ACK, b"")]),
        ("an info of no bytes", vec![(INFO, b""), (ACK, b"")]),
        (
            "a server of GO",
            vec![(OptionReplyCode::SERVER, b"\0\0\0\0"), (ACK, b"")],
        ),
        (
            "block sizes of 3",
            vec![(INFO, b"\0\x03\0\0\0\x03\0\0\0\x03\0\0\0\x03"), (ACK, b"")],
        ),
        (
            "no GO after extended headers",
            vec![(OptionReplyCode::ERR_UNSUP, b"")],
        ),
    ];
    for (what, replies) in cases {
        assert_fails(what, MISBEHAVED, answering(GO, &replies));
    }
}

#[test]
fn refusals_are_told_with_their_text() {
    for reply in [
        OptionReplyCode::ERR_UNKNOWN,
        OptionReplyCode::ERR_POLICY,
        OptionReplyCode::ERR_SHUTDOWN,
        OptionReplyCode::ERR_BLOCK_SIZE_REQD,
        OptionReplyCode(0xffff_ffff),
    ] {
        assert_fails("a refusal", REFUSED, answering(GO, &[(reply, b"\xff\x1b[2J no")]));
    }
}

#[test]
fn replies_to_another_option() {
    let other = option_reply(OptionCode::EXPORT_NAME, ACK, b"");
    for option in [OptionCode::EXTENDED_HEADERS, LIST, SET, GO] {
        let other = other.clone();
        let script = Script::honest(EXTENDED).answers(option, move |_| Act::Say(other.clone()));
        assert_fails("another option", MISBEHAVED, script);
    }
}

/// Magic, option, kind, and a length: the data need not come.
#[test]
fn lengths_of_replies_that_lie() {
    for length in [65_537_u32, 1 << 31, u32::MAX] {
        for option in [LIST, SET, GO] {
            let script = Script::honest(EXTENDED).answers(option, move |_| {
                let mut reply = option_reply(option, META, b"");
                reply[16..20].copy_from_slice(&length.to_be_bytes());
                Act::SayForEver(reply)
            });
            assert_fails("a giant reply", MISBEHAVED, script);
        }
    }
}

#[test]
fn lists_that_do_not_end() {
    let endless = |option, reply, data: &[u8]| {
        let one = option_reply(option, reply, data).repeat(100);
        Script::honest(EXTENDED).answers(option, move |_| Act::SayForEver(one.clone()))
    };
    assert_fails(
        "endless contexts",
        MISBEHAVED,
        endless(LIST, META, b"\0\0\0\0x-a:b"),
    );
    let long = [&b"\0\0\0\0x-a:"[..], &[b'n'; 4000]].concat();
    assert_fails("endless long contexts", MISBEHAVED, endless(LIST, META, &long));
    assert_fails(
        "endless selections",
        MISBEHAVED,
        endless(SET, META, b"\0\0\0\x01base:allocation"),
    );
    assert_fails(
        "endless infos",
        MISBEHAVED,
        endless(GO, INFO, b"\x77\x77whatever"),
    );
}

#[test]
fn selections_that_were_not_asked_for() {
    let cases: [(&str, Replies<'_>); 5] = [
        ("another context", vec![(META, b"\0\0\0\x01x-a:c"), (ACK, b"")]),
        (
            "a context twice",
            vec![
                (META, b"\0\0\0\x01base:allocation"),
                (META, b"\0\0\0\x02base:allocation"),
                (ACK, b""),
            ],
        ),
        ("no colon", vec![(META, b"\0\0\0\x01base"), (ACK, b"")]),
        ("no id", vec![(META, b"\0\0"), (ACK, b"")]),
        ("a NUL", vec![(META, b"\0\0\0\x01base:\0"), (ACK, b"")]),
    ];
    for (what, replies) in cases {
        assert_fails(what, MISBEHAVED, answering(SET, &replies));
    }
}

/// CVE-2017-2630: a list whose names are longer than their replies. `proxy-client` lists with its library only.
#[tokio::test]
async fn names_in_a_list_that_lie() {
    for data in [
        &b"\0\0\0\x05n"[..],
        b"\xff\xff\xff\xffn",
        b"\0\0",
        b"\0\0\0\x02n\0",
    ] {
        let replies = [(OptionReplyCode::SERVER, data), (ACK, &b""[..])];
        let server = EvilServer::start(bytes(), answering(OptionCode::LIST, &replies));
        assert!(proxy_client::nbd::list_exports(&server.nbd_uri()).await.is_err());
    }
    let one = option_reply(OptionCode::LIST, OptionReplyCode::SERVER, b"\0\0\0\x01n").repeat(100);
    let script = Script::honest(EXTENDED).answers(OptionCode::LIST, move |_| Act::SayForEver(one.clone()));
    let server = EvilServer::start(bytes(), script);
    assert!(proxy_client::nbd::list_exports(&server.nbd_uri()).await.is_err());
}

/// Nothing comes any more, at each step: the deadline for a handshake ends it.
#[test]
fn silence() {
    std::thread::scope(|scope| {
        for option in [OptionCode::EXTENDED_HEADERS, LIST, SET, GO] {
            scope.spawn(move || {
                let script = Script::honest(EXTENDED).answers(option, |_| Act::FallSilent);
                assert_fails("silence", LOST, script);
            });
        }
    });
}
