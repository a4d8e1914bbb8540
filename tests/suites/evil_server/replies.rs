//! Lies in transmission.

use nbd_export::proto::{Command, Cookie, HeaderStyle, ReplyTo};
use tests::evil_server::{Act, Answer, Script};

use super::*;

const CHUNKED: [HeaderStyle; 2] = [HeaderStyle::Structured, HeaderStyle::Extended];

type Lie = fn(&Answer<'_>, u64, u64) -> Vec<u8>;

/// Answers every READ with a lie.
fn lying_read(style: HeaderStyle, lie: Lie) -> Script {
    Script::honest(style).replies(move |answer| {
        let (offset, length) = answer.read()?;
        Some(Act::Say(lie(answer, offset, length)))
    })
}

fn lying_status(style: HeaderStyle, lie: Lie) -> Script {
    Script::honest(style).replies(move |answer| {
        let (offset, length) = answer.query()?;
        Some(Act::Say(lie(answer, offset, length)))
    })
}

fn zeroes(length: u64) -> Vec<u8> {
    vec![0; usize::try_from(length).unwrap()]
}

#[test]
fn content_that_does_not_fit_its_request() {
    let lies: [(&str, Lie); 12] = [
        ("a byte before", |a, offset, _| {
            a.data(true, offset.wrapping_sub(1), b"x")
        }),
        ("a byte behind", |a, offset, length| {
            a.data(true, offset + length, b"x")
        }),
        ("over the end", |a, offset, length| {
            a.data(true, offset + length - 1, b"xx")
        }),
        ("an offset that wraps", |a, _, _| a.data(true, u64::MAX, b"xx")),
        ("more than asked for", |a, offset, length| {
            a.data(true, offset, &zeroes(length + 1))
        }),
        ("a hole of 4 GiB", |a, offset, _| {
            a.chunk(true, 2, &[&offset.to_be_bytes()[..], &[0xff; 4]].concat())
        }),
        ("a hole of nothing", |a, offset, _| {
            a.chunk(true, 2, &[&offset.to_be_bytes()[..], &[0; 4]].concat())
        }),
        ("data of no bytes", |a, offset, _| a.data(true, offset, b"")),
        ("the same twice", |a, offset, length| {
            [
                a.data(false, offset, &zeroes(length)),
                a.data(true, offset, &zeroes(length)),
            ]
            .concat()
        }),
        ("an overlap of a byte", |a, offset, length| {
            [
                a.data(false, offset, &zeroes(length - 1)),
                a.data(true, offset + length - 2, &zeroes(2)),
            ]
            .concat()
        }),
        ("a byte missing", |a, offset, length| {
            a.data(true, offset, &zeroes(length - 1))
        }),
        ("everything missing", |a, _, _| a.chunk(true, 0, b"")),
    ];
    for style in CHUNKED {
        for (what, lie) in lies {
            assert_fails(what, MISBEHAVED, lying_read(style, lie));
        }
    }
}

#[test]
fn replies_that_are_not_due() {
    let lies: [(&str, Lie); 10] = [
        ("an unknown cookie", |a, _, length| {
            let to = ReplyTo {
                cookie: Cookie(!a.to.cookie.0),
                ..a.to
            };
            Answer { to, ..*a }.data(true, a.to.offset, &zeroes(length))
        }),
        ("an empty chunk in the middle", |a, _, _| {
            [&a.chunk(false, 0, b"")[..], a.honest].concat()
        }),
        ("an empty chunk with a payload", |a, _, _| a.chunk(true, 0, b"x")),
        ("an unknown kind of chunk", |a, _, _| {
            [&a.chunk(false, 99, b"")[..], a.honest].concat()
        }),
        ("status for a READ", |a, _, length| {
            a.status(true, 1, &[(length, 0)])
        }),
        ("an error of no value", |a, _, _| a.chunk(true, 0x8001, &[0; 6])),
        ("an error whose text is not there", |a, _, _| {
            a.chunk(true, 0x8001, b"\0\0\0\x05\xff\xff")
        }),
        ("an error of 1 GiB", |a, _, _| {
            a.lying_chunk(true, 0x8001, 1 << 30, &[0; 64])
        }),
        ("data of 4 GiB", |a, offset, _| {
            a.lying_chunk(true, 1, 0xffff_ffff, &offset.to_be_bytes())
        }),
        ("a wrong magic", |_, _, _| vec![0x55; 64]),
    ];
    for style in CHUNKED {
        for (what, lie) in lies {
            assert_fails(what, MISBEHAVED, lying_read(style, lie));
        }
    }
}

#[test]
fn headers_that_were_not_negotiated() {
    let simple: Lie = |a, _, length| a.simple(0, &zeroes(length));
    for style in CHUNKED {
        assert_fails("a simple reply to READ", MISBEHAVED, lying_read(style, simple));
    }
    let structured: Lie = |a, _, _| {
        let mut out = 0x668e_33ef_u32.to_be_bytes().to_vec();
        out.extend([0, 1, 0, 0]);
        out.extend(a.to.cookie.0.to_be_bytes());
        out.extend([0; 4]);
        out
    };
    let extended: Lie = |a, _, _| {
        let mut out = 0x6e8a_278c_u32.to_be_bytes().to_vec();
        out.extend([0, 1, 0, 0]);
        out.extend(a.to.cookie.0.to_be_bytes());
        out.extend([0; 16]);
        out
    };
    for (style, lie) in [
        (HeaderStyle::Simple, structured),
        (HeaderStyle::Simple, extended),
        (HeaderStyle::Structured, extended),
        (HeaderStyle::Extended, structured),
    ] {
        assert_fails("another kind of reply", MISBEHAVED, lying_read(style, lie));
    }
    let elsewhere: Lie = |a, offset, length| {
        let to = ReplyTo {
            offset: offset + 512,
            ..a.to
        };
        Answer { to, ..*a }.data(true, offset, &zeroes(length))
    };
    assert_fails(
        "another offset",
        MISBEHAVED,
        lying_read(HeaderStyle::Extended, elsewhere),
    );
}

/// Simple replies have no length of their own: a wrong cookie and an error are all that can be seen.
#[test]
fn simple_replies() {
    let unknown: Lie = |a, _, length| {
        let to = ReplyTo {
            cookie: Cookie(!a.to.cookie.0),
            ..a.to
        };
        Answer { to, ..*a }.simple(0, &zeroes(length))
    };
    assert_fails(
        "an unknown cookie",
        MISBEHAVED,
        lying_read(HeaderStyle::Simple, unknown),
    );
    for (errno, kind) in [
        (1, REFUSED),
        (5, CANNOT_READ),
        (12, REFUSED),
        (22, REFUSED),
        (99, REFUSED),
        (u32::MAX, REFUSED),
    ] {
        let script = Script::honest(HeaderStyle::Simple)
            .replies(move |answer| Some(Act::Say(answer.simple(errno, b""))));
        assert_fails("an error", kind, script);
    }
}

/// What is said beside a good answer is seen when something else is asked for.
#[test]
fn answers_with_something_behind_them() {
    let twice: Lie = |a, _, _| [a.honest, a.honest].concat();
    let too_much: Lie = |a, _, _| [a.honest, b"x"].concat();
    for style in STYLES {
        for (what, lie) in [("an answer twice", twice), ("a byte too many", too_much)] {
            let volume = volume::noise(8, 24 << 20);
            assert_fails_of(volume, what, MISBEHAVED, lying_read(style, lie));
        }
    }
}

/// Part of the data has come when the error does.
#[test]
fn errors_in_the_middle_of_a_reply() {
    for style in CHUNKED {
        for code in [0x8001, 0x8002, 0xf00d] {
            let script = Script::honest(style).replies(move |answer| {
                let (offset, length) = answer.read()?;
                let half = answer.data(false, offset, &zeroes(length / 2));
                let mut error = b"\0\0\0\x05\0\x02no".to_vec();
                error.extend((offset + length / 2).to_be_bytes());
                let rest = answer.data(true, offset + length / 2, &zeroes(length - length / 2));
                Some(Act::Say([half, answer.chunk(false, code, &error), rest].concat()))
            });
            // The half that did come is not handed on, however often and for however little the host is asked.
            assert_fails("an error in the middle", CANNOT_READ, script);
        }
    }
}

/// CVE of libnbd, 2023-07: what a server says of extents must not hang or confuse a client.
#[test]
fn status_that_contradicts_itself() {
    fn id(a: &Answer<'_>) -> u32 {
        a.session.contexts[0].id.0
    }
    let lies: [(&str, Lie); 9] = [
        ("an extent of nothing", |a, _, _| a.status(true, id(a), &[(0, 0)])),
        ("an extent of nothing behind one", |a, _, _| {
            a.status(true, id(a), &[(512, 0), (0, 3)])
        }),
        ("more than asked for", |a, _, length| {
            a.status(true, id(a), &[(length, 0), (512, 3)])
        }),
        ("no extents", |a, _, _| a.status(true, id(a), &[])),
        ("an id that nobody drew", |a, _, length| {
            a.status(true, id(a) + 1, &[(length, 0)])
        }),
        ("a context twice", |a, _, length| {
            [
                a.status(false, id(a), &[(length, 0)]),
                a.status(true, id(a), &[(length, 3)]),
            ]
            .concat()
        }),
        ("no context", |a, _, _| a.chunk(true, 0, b"")),
        ("half an extent", |a, _, _| {
            a.chunk(
                true,
                if a.session.style == HeaderStyle::Extended {
                    6
                } else {
                    5
                },
                &[1; 10],
            )
        }),
        ("data for a status", |a, offset, _| a.data(true, offset, b"x")),
    ];
    for style in CHUNKED {
        for (what, lie) in lies {
            assert_fails(what, MISBEHAVED, lying_status(style, lie));
        }
    }
    let miscounted: Lie = |a, _, length| {
        let mut out = a.status(true, id(a), &[(length, 0)]);
        let at = out.len() - 17;
        out[at] = 2;
        out
    };
    assert_fails(
        "a wrong count",
        MISBEHAVED,
        lying_status(HeaderStyle::Extended, miscounted),
    );
    let compact: Lie = |a, _, _| a.chunk(true, 5, &[0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_fails(
        "status of 32 bits",
        MISBEHAVED,
        lying_status(HeaderStyle::Extended, compact),
    );
}

/// CVE-2023-5871: flags of 64 bits that nobody knows; and extents past the end. Neither is an error, and neither makes the
/// image wrong.
#[test]
fn status_that_is_only_strange() {
    tests::needs!("zstd");
    for style in CHUNKED {
        let extended = style == HeaderStyle::Extended;
        let far = if extended { u64::MAX } else { u64::from(u32::MAX) };
        // All bits but "reads as zeroes".
        let flags = if extended { !2 } else { 0xffff_fffd };
        let script = Script::honest(style).replies(move |answer| {
            answer.query()?;
            Some(Act::Say(answer.status(
                true,
                answer.session.contexts[0].id.0,
                &[(1000, flags), (far, 0)],
            )))
        });
        assert_backed_up("strange status", script);
    }
}

/// Errors that tell of holes only cost the holes.
#[test]
fn a_server_that_cannot_tell_its_holes() {
    tests::needs!("zstd");
    for style in CHUNKED {
        let script = Script::honest(style).replies(|answer| {
            matches!(answer.command, Command::BlockStatus { .. })
                .then(|| Act::Say(answer.chunk(true, 0x8001, b"\0\0\0\x5f\0\0")))
        });
        assert_backed_up("no status", script);
    }
}

#[test]
fn the_export_ends() {
    let script = Script::honest(HeaderStyle::Extended).replies(|answer| {
        answer.read()?;
        Some(Act::Say(answer.chunk(true, 0x8001, b"\0\0\0\x6c\0\0")))
    });
    let server = EvilServer::start(bytes(), script);
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("image");
    let arguments = ["backup", &server.uri(), "--output", output.to_str().unwrap()];
    let error = program::fails("proxy-client", 5, &arguments);
    assert_eq!(error["kind"], "frozen-image-gone");
    image::assert_nothing_left(&output);
}

/// Chunks without end for one READ: each is legal, so the number of them must be bounded.
#[test]
fn chunks_without_end() {
    for style in CHUNKED {
        let script = Script::honest(style).replies(|answer| {
            answer.read()?;
            let unknown_error = answer.chunk(false, 0x8001, b"\0\0\0\x05\0\0");
            Some(Act::SayForEver(unknown_error.repeat(1000)))
        });
        assert_fails("errors without end", MISBEHAVED, script);
    }
}
