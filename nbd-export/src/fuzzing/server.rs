//! A client's stream against our server: its options, and its requests.

mod handshake;
mod transmission;

use super::script::Script;
use super::shelf::session;
use handshake::Talk;
use transmission::{scripted_requests, transmit};

/// A whole client: handshake and transmission, or transmission in a session that is given.
pub(super) fn server(input: &[u8]) {
    let mut script = Script::of(input);
    let how = script.byte();
    let piece = usize::from(script.byte()) + 1;
    let scripted = how & 2 == 0;
    if how & 1 == 0 {
        let (tls, ends) = (how & 4 != 0, how & 8 != 0);
        let talk = if scripted {
            Talk::scripted(script, tls, ends)
        } else {
            Talk::raw(script, tls, ends)
        };
        talk.check(piece);
    } else {
        let session = session(script.style(), script.chance());
        let stream = if scripted {
            scripted_requests(script, &session)
        } else {
            script.rest().into()
        };
        let whole = transmit(&stream, &session, usize::MAX);
        assert_eq!(
            whole,
            transmit(&stream, &session, piece),
            "the cuts of the network show"
        );
    }
}
