//! How the host answers: laws H4, H5 and H6 are the order of these steps.
//!
//! A question about the map is received wholly; places and generations are taken from one state of the map (H4), for a snapshot
//! from a log that is at least as long as the live status says, asked after the question came; then the witness of the content is
//! looked at (H6), and the answer goes out. A read is looked up, copied, and then checked (H5).

use crate::flaw::Flaw;
use crate::scenario::{Provider, Scenario};
use crate::state::{Byte, CONNECTIONS, Location, Source, State, Steps, UNITS, Unit, at, small};

/// What a proxy asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// Places and generations.
    Map,
    /// Generations alone.
    Generations,
    /// A unit's bytes, through the host.
    Read(Unit),
}

/// A question, on a connection that was opened for an image; for whichever there is, if that is 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// What.
    pub ask: Ask,
    /// Of which image.
    pub image: u8,
}

/// Where a unit lies, by which stamp.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// Where it can be read.
    pub location: Location,
    /// The stamp.
    pub generation: u8,
}

/// What the host says of all units.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Answer {
    /// Of which image.
    pub image: u8,
    /// Each unit.
    pub entries: [Entry; UNITS],
}

/// What comes back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reply {
    /// Of the map.
    Map(Answer),
    /// What a unit holds.
    Bytes(Byte),
    /// A page that will be looked at when it is sent.
    Page(Source),
    /// `ESHUTDOWN`.
    Gone,
}

/// A question on its way through the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Handler {
    /// Nothing was asked.
    Idle,
    /// All of the question is here.
    Received(Question),
    /// The live status of the snapshot was asked after it came.
    Sampled(Question, u8),
    /// The places were taken, and the generations were not.
    Placed(Question, [Location; UNITS]),
    /// Places and generations were taken.
    Located(Question, Answer),
    /// A read was looked up.
    LookedUp(Question, Source),
    /// And found good, before anything was copied.
    Checked(Question, Source),
    /// It was copied into private memory.
    Copied(Question, Source, Byte),
    /// The reply is on its way.
    Answered(Reply),
    /// The connection is lost.
    Lost,
}

const HOST: &str = "the host";

/// What the host can do now.
pub(crate) fn steps(steps: &mut Steps<'_>, scenario: &Scenario, flaw: Option<Flaw>) {
    for connection in 0..CONNECTIONS {
        match steps.state.handlers[connection] {
            Handler::Idle | Handler::Answered(_) | Handler::Lost => {}
            Handler::Received(question) => match question.ask {
                Ask::Map | Ask::Generations => receive(steps, connection, question, scenario, flaw),
                Ask::Read(unit) => look_up(steps, connection, question, unit),
            },
            Handler::Sampled(question, begun) => {
                if recorded(steps.state) >= begun {
                    locate(steps, connection, question, flaw);
                }
            }
            Handler::Placed(question, places) => {
                steps.add((HOST, Some(connection)), "takes the generations", None, |next| {
                    let mut answer = answer(next, flaw);
                    for (entry, place) in answer.entries.iter_mut().zip(places) {
                        entry.location = place;
                    }
                    next.handlers[connection] = Handler::Located(question, answer);
                    None
                });
            }
            Handler::Located(question, answer) => {
                steps.add(
                    (HOST, Some(connection)),
                    "looks at the content, and answers",
                    None,
                    |next| {
                        let good = stands(next, question, flaw) && answer.image == next.image;
                        let reply = if good { Reply::Map(answer) } else { Reply::Gone };
                        next.handlers[connection] = Handler::Answered(reply);
                        None
                    },
                );
            }
            Handler::LookedUp(question, source) => copy_or_check(steps, connection, question, source, flaw),
            Handler::Checked(question, source) => {
                steps.add(
                    (HOST, Some(connection)),
                    "copies what it checked",
                    unit_of(question),
                    |next| {
                        let reply = if flaw == Some(Flaw::ByReference) {
                            Reply::Page(source)
                        } else {
                            Reply::Bytes(copy(next, question, source))
                        };
                        next.handlers[connection] = Handler::Answered(reply);
                        None
                    },
                );
            }
            Handler::Copied(question, source, byte) => check(steps, connection, question, source, byte, flaw),
        }
    }
}

/// Exceptions in the log of the snapshot.
fn recorded(state: &State) -> u8 {
    small(state.map.iter().filter(|s| matches!(s, Source::Slot(_))).count())
}

/// Law H6: the image that the connection was opened for, with its content.
fn stands(state: &State, question: Question, flaw: Option<Flaw>) -> bool {
    let same = question.image == 0 || question.image == state.image;
    same && (!state.lost || flaw == Some(Flaw::AnswersThoughLost))
}

fn receive(
    steps: &mut Steps<'_>,
    connection: usize,
    question: Question,
    scenario: &Scenario,
    flaw: Option<Flaw>,
) {
    if flaw == Some(Flaw::SharedSample) {
        let earlier = steps.state.handlers[1 - connection];
        if let Handler::Located(_, answer) = earlier {
            steps.add(
                (HOST, Some(connection)),
                "shares the other connection's sample",
                None,
                |next| {
                    next.handlers[connection] = Handler::Located(question, answer);
                    None
                },
            );
        }
    }
    if flaw == Some(Flaw::PlacesThenGenerations) {
        steps.add((HOST, Some(connection)), "takes the places", None, |next| {
            let places = answer(next, flaw).entries.map(|entry| entry.location);
            next.handlers[connection] = Handler::Placed(question, places);
            None
        });
    } else if scenario.provider == Provider::Snapshot && flaw != Some(Flaw::StatusForLog) {
        steps.add(
            (HOST, Some(connection)),
            "asks for the live status",
            None,
            |next| {
                next.handlers[connection] = Handler::Sampled(question, next.begun);
                None
            },
        );
    } else {
        locate(steps, connection, question, flaw);
    }
}

/// Law H4: from one state.
fn locate(steps: &mut Steps<'_>, connection: usize, question: Question, flaw: Option<Flaw>) {
    steps.add(
        (HOST, Some(connection)),
        "takes places and generations",
        None,
        |next| {
            let answer = answer(next, flaw);
            next.handlers[connection] = Handler::Located(question, answer);
            None
        },
    );
}

fn answer(state: &State, flaw: Option<Flaw>) -> Answer {
    let mut entries = [Entry {
        location: Location::Zero,
        generation: 0,
    }; UNITS];
    for (unit, entry) in (0..).zip(&mut entries) {
        let location = state.location(unit);
        let generation = match (flaw, location) {
            (Some(Flaw::StatusForLog), _) => state.begun,
            (Some(Flaw::TableAlone), Location::At(place)) => place,
            _ => state.generation[at(unit)],
        };
        *entry = Entry { location, generation };
    }
    Answer {
        image: state.image,
        entries,
    }
}

fn unit_of(question: Question) -> Option<Unit> {
    match question.ask {
        Ask::Read(unit) => Some(unit),
        Ask::Map | Ask::Generations => None,
    }
}

fn look_up(steps: &mut Steps<'_>, connection: usize, question: Question, unit: Unit) {
    steps.add(
        (HOST, Some(connection)),
        "looks up where it lies",
        Some(unit),
        |next| {
            next.handlers[connection] = Handler::LookedUp(question, next.map[at(unit)]);
            None
        },
    );
}

fn copy(state: &State, question: Question, source: Source) -> Byte {
    match (source, unit_of(question)) {
        (Source::Origin, Some(unit)) => state.live(unit),
        (Source::Slot(slot), _) => state.on_disk(Location::At(State::slot_place(slot))),
        (Source::Zero, _) | (Source::Origin, None) => Byte::Zero,
    }
}

fn copy_or_check(
    steps: &mut Steps<'_>,
    connection: usize,
    question: Question,
    source: Source,
    flaw: Option<Flaw>,
) {
    let unit = unit_of(question);
    if matches!(flaw, Some(Flaw::CheckBeforeCopy | Flaw::ByReference)) {
        let is_there = unit.is_some_and(|unit| steps.state.map[at(unit)] == source);
        if is_there && stands(steps.state, question, flaw) {
            steps.add(
                (HOST, Some(connection)),
                "checks, before it has copied",
                unit,
                |next| {
                    next.handlers[connection] = Handler::Checked(question, source);
                    None
                },
            );
        }
    } else {
        steps.add((HOST, Some(connection)), "copies it", unit, |next| {
            let byte = copy(next, question, source);
            next.handlers[connection] = Handler::Copied(question, source, byte);
            None
        });
    }
}

/// Law H5: what was copied is answered if it still lies there and still is the frozen content; what moved is looked up again.
fn check(
    steps: &mut Steps<'_>,
    connection: usize,
    question: Question,
    source: Source,
    byte: Byte,
    flaw: Option<Flaw>,
) {
    steps.add(
        (HOST, Some(connection)),
        "checks what it copied",
        unit_of(question),
        |next| {
            let moved = unit_of(question).is_some_and(|unit| next.map[at(unit)] != source);
            next.handlers[connection] = if !stands(next, question, flaw) {
                Handler::Answered(Reply::Gone)
            } else if moved {
                Handler::Received(question)
            } else {
                Handler::Answered(Reply::Bytes(byte))
            };
            None
        },
    );
}
