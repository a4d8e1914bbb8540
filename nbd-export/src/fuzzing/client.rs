//! A server's stream against our client: its answers to options, and its replies to requests.

mod handshake;
mod transmission;

use super::script::Script;
use super::shelf::session;
use handshake::Talk;
use transmission::transmit;

/// Longest READ of a script: more would only take time.
pub(super) const READ_MAX: u64 = 1 << 10;

/// A whole server: handshake and transmission, or transmission in a session that is given.
pub(super) fn client(input: &[u8]) {
    let mut script = Script::of(input);
    let how = script.byte();
    let piece = usize::from(script.byte()) + 1;
    let scripted = how & 2 == 0;
    if how & 1 == 1 {
        let session = session(script.style(), script.chance());
        transmit(&session, script, scripted, piece);
        return;
    }
    let goal = handshake::goal(script.choice(4));
    let (highest, tls) = (script.style(), how & 4 != 0);
    if scripted {
        let talk = Talk::scripted(&mut script, goal, highest, tls);
        if let Some((session, _)) = talk.check(piece) {
            transmit(&session, script, true, piece);
        }
    } else {
        let talk = Talk::raw(script, goal, highest, tls);
        if let Some((session, rest)) = talk.check(piece) {
            transmit(&session, Script::of(&rest), false, piece);
        }
    }
}
