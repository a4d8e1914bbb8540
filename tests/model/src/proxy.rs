//! How the proxy fetches: laws P0 to P5 are the order of these steps.
//!
//! The map is learnt with its generations from one reply (P1). Each batch: a map that is older than the last confirmation is
//! confirmed (P0); its units are read past every cache, and each read completes (P2); then the generations are asked for, and what
//! has its own still is kept (P3); what has not is mapped again, and read again, at last through the host (P4). When the image is
//! gone, or another, nothing more is kept (P5).

use crate::flaw::Flaw;
use crate::host::{Answer, Ask, Entry, Handler, Question, Reply};
use crate::scenario::Scenario;
use crate::state::{Byte, CONNECTIONS, Source, State, Steps, UNITS, Unit, Violation, at};

/// What is known of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Have {
    /// Nothing, or what is not so any more.
    Nothing,
    /// Where it lies.
    Mapped(Entry),
    /// What was read there.
    Read(Entry, Byte),
    /// It is in the backup.
    Kept,
}

/// Why something was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// The whole map, for the first time.
    Learn,
    /// Generations for places that were told before.
    LearnGenerations,
    /// Whether a map still stands, before it is read by (P0).
    Confirm,
    /// Whether it still stood, after it was read by (P3).
    Check,
    /// The map of what moved (P4).
    Again,
    /// The bytes of a unit.
    Fetch(Unit),
}

/// Where a fetcher is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// It has not connected.
    Start,
    /// It waits for an answer.
    Asked(Purpose),
    /// It works on a batch, whose map it has confirmed, or has not.
    Working {
        /// See above.
        confirmed: bool,
    },
    /// All of its units are kept.
    Done,
    /// The image is gone: no END is written.
    Stopped,
}

/// One connection of the proxy, with the batches that it fetches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fetcher {
    /// Where it is.
    pub phase: Phase,
    /// The image that it backs up.
    pub image: u8,
    /// The batch that it is at.
    batch: u8,
    /// Times that something of the batch had moved.
    round: u8,
    have: [Have; UNITS],
    /// The last confirmation told of another generation than the one in the map.
    outdated: [bool; UNITS],
}

impl Fetcher {
    pub(crate) const START: Self = Self {
        phase: Phase::Start,
        image: 0,
        batch: 0,
        round: 0,
        have: [Have::Nothing; UNITS],
        outdated: [false; UNITS],
    };

    /// Whether it will do nothing more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Stopped)
    }

    fn any(&self, batch: &[Unit], wanted: impl Fn(&Have) -> bool) -> bool {
        batch.iter().any(|&unit| wanted(&self.have[at(unit)]))
    }
}

const PROXY: &str = "the proxy";

/// What the proxy can do now.
pub(crate) fn steps(steps: &mut Steps<'_>, scenario: &Scenario, flaw: Option<Flaw>) {
    for (connection, &batches) in scenario.batches.iter().enumerate().take(CONNECTIONS) {
        let step = Fetching {
            connection,
            batches,
            scenario,
            flaw,
        };
        let fetcher = steps.state.fetchers[connection];
        match fetcher.phase {
            Phase::Done | Phase::Stopped => {}
            Phase::Start => {
                if steps.state.image > 0 {
                    step.ask(steps, "asks for the map", Ask::Map, Purpose::Learn);
                }
            }
            Phase::Asked(purpose) => step.take(steps, purpose),
            Phase::Working { confirmed } => step.work(steps, confirmed),
        }
    }
}

/// One connection's next step.
struct Fetching<'a> {
    connection: usize,
    batches: &'a [&'a [Unit]],
    scenario: &'a Scenario,
    flaw: Option<Flaw>,
}

impl Fetching<'_> {
    fn add(
        &self,
        steps: &mut Steps<'_>,
        deed: &'static str,
        unit: Option<Unit>,
        change: impl FnOnce(&mut State) -> Option<Violation>,
    ) {
        steps.add((PROXY, Some(self.connection)), deed, unit, change);
    }

    fn ask(&self, steps: &mut Steps<'_>, deed: &'static str, ask: Ask, purpose: Purpose) {
        self.add(steps, deed, None, |next| {
            self.put(next, ask, purpose);
            None
        });
    }

    fn put(&self, next: &mut State, ask: Ask, purpose: Purpose) {
        let fetcher = &mut next.fetchers[self.connection];
        // Law P5: asked of the image that everything comes from.
        let image = match purpose {
            Purpose::Learn => 0,
            _ => fetcher.image,
        };
        let image = if self.flaw == Some(Flaw::AnotherImage) {
            0
        } else {
            image
        };
        fetcher.phase = Phase::Asked(purpose);
        next.handlers[self.connection] = Handler::Received(Question { ask, image });
    }

    /// The next thing to do for a batch.
    fn work(&self, steps: &mut Steps<'_>, confirmed: bool) {
        let fetcher = steps.state.fetchers[self.connection];
        let Some(&batch) = self.batches.get(at(fetcher.batch)) else {
            return;
        };
        let is_mapped = |have: &Have| matches!(have, Have::Mapped(_));
        let is_read = |have: &Have| matches!(have, Have::Read(..));
        if !confirmed && self.flaw != Some(Flaw::OldMapUnconfirmed) {
            self.ask(
                steps,
                "asks whether its map still stands (P0)",
                Ask::Generations,
                Purpose::Confirm,
            );
        } else if fetcher.any(batch, |have| *have == Have::Nothing) {
            self.ask(
                steps,
                "asks for the map of what moved (P4)",
                Ask::Map,
                Purpose::Again,
            );
        } else if fetcher.any(batch, is_mapped) {
            if self.flaw == Some(Flaw::AskBeforeReadEnds) {
                self.ask(
                    steps,
                    "asks before its reads have ended",
                    Ask::Generations,
                    Purpose::Check,
                );
            } else {
                self.read(steps, batch);
            }
        } else if fetcher.any(batch, is_read) {
            self.ask(
                steps,
                "asks for the generations, its reads done (P3)",
                Ask::Generations,
                Purpose::Check,
            );
        } else {
            self.add(steps, "has a batch", None, |next| {
                let fetcher = &mut next.fetchers[self.connection];
                fetcher.batch += 1;
                fetcher.round = 0;
                fetcher.phase = if at(fetcher.batch) == self.batches.len() {
                    Phase::Done
                } else {
                    Phase::Working { confirmed: false }
                };
                None
            });
        }
    }

    /// The first unit that is mapped and not read: from the disk, or through the host.
    fn read(&self, steps: &mut Steps<'_>, batch: &[Unit]) {
        let fetcher = steps.state.fetchers[self.connection];
        let mapped = batch.iter().find_map(|&unit| match fetcher.have[at(unit)] {
            Have::Mapped(entry) => Some((unit, entry)),
            _ => None,
        });
        let Some((unit, entry)) = mapped else { return };
        let direct = fetcher.round < self.scenario.rounds;
        if direct {
            self.add(steps, "reads from the disk (P2)", Some(unit), |next| {
                let byte = next.on_disk(entry.location);
                let unchecked = self.flaw == Some(Flaw::NoCheck)
                    || (self.flaw == Some(Flaw::NoSecondCheck) && fetcher.round > 0);
                let fetcher = &mut next.fetchers[self.connection];
                fetcher.have[at(unit)] = if unchecked {
                    Have::Kept
                } else {
                    Have::Read(entry, byte)
                };
                if fetcher.outdated[at(unit)] && self.scenario.minds_outdated {
                    return Some(Violation::OutdatedMap { unit });
                }
                let image = fetcher.image;
                if unchecked {
                    next.judge(image, unit, byte)
                } else {
                    None
                }
            });
        }
        if !direct || self.scenario.through_host {
            self.add(steps, "reads through the host", Some(unit), |next| {
                self.put(next, Ask::Read(unit), Purpose::Fetch(unit));
                None
            });
        }
    }

    /// Takes the reply, once it is there.
    fn take(&self, steps: &mut Steps<'_>, purpose: Purpose) {
        let fetcher = steps.state.fetchers[self.connection];
        let batch: &[Unit] = self.batches.get(at(fetcher.batch)).copied().unwrap_or_default();
        if self.flaw == Some(Flaw::AskBeforeReadEnds)
            && purpose == Purpose::Check
            && fetcher.any(batch, |have| matches!(have, Have::Mapped(_)))
        {
            self.read(steps, batch);
            return;
        }
        match steps.state.handlers[self.connection] {
            Handler::Lost => self.add(steps, "connects again, and asks again", None, |next| {
                let ask = match purpose {
                    Purpose::Learn | Purpose::Again => Ask::Map,
                    Purpose::LearnGenerations | Purpose::Confirm | Purpose::Check => Ask::Generations,
                    Purpose::Fetch(unit) => Ask::Read(unit),
                };
                self.put(next, ask, purpose);
                None
            }),
            Handler::Answered(Reply::Gone) => self.add(steps, "stops (P5)", None, |next| {
                next.fetchers[self.connection].phase = Phase::Stopped;
                next.handlers[self.connection] = Handler::Idle;
                None
            }),
            Handler::Answered(reply) => self.answered(steps, purpose, reply, batch),
            _ => {}
        }
    }

    fn answered(&self, steps: &mut Steps<'_>, purpose: Purpose, reply: Reply, batch: &[Unit]) {
        match (reply, purpose) {
            (Reply::Map(answer), Purpose::Learn) => self.add(steps, "learns the map (P1)", None, |next| {
                self.idle(next).image = answer.image;
                for &unit in self.batches.iter().copied().flatten() {
                    next.fetchers[self.connection].have[at(unit)] = Have::Mapped(answer.entries[at(unit)]);
                }
                if self.flaw == Some(Flaw::MapsMixed) {
                    self.put(next, Ask::Generations, Purpose::LearnGenerations);
                }
                None
            }),
            (Reply::Map(answer), Purpose::LearnGenerations) => {
                self.add(
                    steps,
                    "learns generations for the places of before",
                    None,
                    |next| {
                        for (have, entry) in self.idle(next).have.iter_mut().zip(answer.entries) {
                            if let Have::Mapped(mapped) = have {
                                mapped.generation = entry.generation;
                            }
                        }
                        None
                    },
                );
            }
            (Reply::Map(answer), Purpose::Confirm) => {
                self.add(steps, "confirms its map (P0)", None, |next| {
                    let fetcher = self.idle(next);
                    compare(fetcher, &answer);
                    for &unit in batch {
                        if fetcher.outdated[at(unit)] {
                            fetcher.have[at(unit)] = Have::Nothing;
                        }
                    }
                    None
                })
            }
            (Reply::Map(answer), Purpose::Again) => {
                self.add(steps, "learns where it is now (P4)", None, |next| {
                    let fetcher = self.idle(next);
                    for &unit in batch {
                        if fetcher.have[at(unit)] == Have::Nothing {
                            fetcher.have[at(unit)] = Have::Mapped(answer.entries[at(unit)]);
                            fetcher.outdated[at(unit)] = false;
                        }
                    }
                    None
                })
            }
            (Reply::Map(answer), Purpose::Check) => self.check(steps, answer, batch),
            (Reply::Bytes(byte), Purpose::Fetch(unit)) => {
                self.add(steps, "keeps what the host read", Some(unit), |next| {
                    self.keep(next, unit, byte)
                });
            }
            (Reply::Page(source), Purpose::Fetch(unit)) => {
                self.add(
                    steps,
                    "receives the page that the host sent",
                    Some(unit),
                    |next| {
                        let byte = match source {
                            Source::Origin => next.live(unit),
                            _ => next.on_disk(next.location(unit)),
                        };
                        self.keep(next, unit, byte)
                    },
                );
            }
            (Reply::Map(_), Purpose::Fetch(_)) | (Reply::Bytes(_) | Reply::Page(_), _) | (Reply::Gone, _) => {
            }
        }
    }

    /// The answer was taken, and work goes on.
    fn idle<'s>(&self, next: &'s mut State) -> &'s mut Fetcher {
        next.handlers[self.connection] = Handler::Idle;
        let fetcher = &mut next.fetchers[self.connection];
        fetcher.phase = Phase::Working { confirmed: true };
        fetcher
    }

    /// Law P3: what has its generation still is kept, and what has not is not.
    fn check(&self, steps: &mut Steps<'_>, answer: Answer, batch: &[Unit]) {
        let fetcher = steps.state.fetchers[self.connection];
        let moved = |unit: Unit| match fetcher.have[at(unit)] {
            Have::Read(entry, _) => entry.generation != answer.entries[at(unit)].generation,
            _ => false,
        };
        let any = batch.iter().any(|&unit| moved(unit));
        let deed = if any {
            "throws away what moved (P3)"
        } else {
            "keeps what it read (P3)"
        };
        self.add(steps, deed, None, |next| {
            let image = fetcher.image;
            let fetcher = self.idle(next);
            compare(fetcher, &answer);
            fetcher.round += u8::from(any);
            let mut kept = Vec::new();
            for &unit in batch {
                if let Have::Read(_, byte) = fetcher.have[at(unit)] {
                    if moved(unit) {
                        fetcher.have[at(unit)] = Have::Nothing;
                    } else {
                        fetcher.have[at(unit)] = Have::Kept;
                        kept.push((unit, byte));
                    }
                }
            }
            kept.into_iter()
                .find_map(|(unit, byte)| next.judge(image, unit, byte))
        });
    }

    fn keep(&self, next: &mut State, unit: Unit, byte: Byte) -> Option<Violation> {
        let fetcher = self.idle(next);
        fetcher.have[at(unit)] = Have::Kept;
        let image = fetcher.image;
        next.judge(image, unit, byte)
    }
}

/// What a confirmation tells of every place that was not read by yet.
fn compare(fetcher: &mut Fetcher, answer: &Answer) {
    for (unit, have) in fetcher.have.iter().enumerate() {
        if let Have::Mapped(entry) = have {
            fetcher.outdated[unit] = entry.generation != answer.entries[unit].generation;
        }
    }
}
