//! Replies, in a session that was negotiated or given.

use bytes::BytesMut;

use crate::fuzzing::oracle::{Asked, check_shape, scripted_replies};
use crate::fuzzing::script::Script;
use crate::proto::limits::MAX_DESCRIPTORS;
use crate::proto::transmission::{ClientTransmission, Finished};
use crate::proto::{Command, Negotiated, ProtocolError};

/// Asks for some things, and holds what came of them against what the server said.
pub(super) fn transmit(session: &Negotiated, mut script: Script<'_>, scripted: bool, piece: usize) {
    let asked: Vec<Asked> = if scripted {
        (0..=script.choice(4))
            .filter_map(|_| Asked::scripted(&mut script, session))
            .collect()
    } else {
        Asked::some_of_each(session)
    };
    let commands: Vec<Command> = asked.iter().map(|asked| asked.command.clone()).collect();
    let (stream, expected) = if scripted {
        let (stream, expected) = scripted_replies(script, session, asked);
        (stream, Some(expected))
    } else {
        (script.rest().into(), None)
    };
    let whole = replies(session, &commands, &stream, usize::MAX);
    assert_eq!(
        whole,
        replies(session, &commands, &stream, piece),
        "the cuts of the network show"
    );
    let (finished, end) = whole;
    for (n, one) in finished.iter().enumerate() {
        let again = |other: &Finished| other.cookie == one.cookie;
        assert!(!finished[..n].iter().any(again), "a request finished twice");
        check_shape(one, &commands, session);
    }
    if let Some(expected) = expected {
        expected.check(&finished, end.as_ref());
    }
}

/// What became of requests, and what ended the session.
type Replies = (Vec<Finished>, Option<ProtocolError>);

fn replies(session: &Negotiated, commands: &[Command], stream: &[u8], piece: usize) -> Replies {
    let mut client = ClientTransmission::new(session.clone());
    let mut output = BytesMut::new();
    for command in commands {
        client
            .submit(command, &mut output)
            .expect("held against the session before");
    }
    let (mut input, mut finished) = (BytesMut::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        input.extend_from_slice(bytes);
        loop {
            match client.advance(&mut input) {
                Ok(Some(one)) => finished.push(one),
                Ok(None) => break,
                Err(error) => return (finished, Some(error)),
            }
        }
        assert!(
            input.capacity() <= 2 * (16 * MAX_DESCRIPTORS + stream.len() + (1 << 17)),
            "what is waited for has a limit"
        );
    }
    (finished, None)
}
