//! What happens to the world beside writes: freeze, restart, a volume that is moved, and an intruder.

use crate::flaw::Flaw;
use crate::host::Handler;
use crate::scenario::Scenario;
use crate::state::{Byte, Place, Source, State, Steps, Unit, at};
use crate::writer::Writer;

/// Moves the volume below a unit to another place (pvmove, say), after which the old place is somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mover {
    /// Nothing is being moved.
    Idle {
        /// A place that is nobody's.
        spare: Place,
    },
    /// The unit was copied, and its writers wait.
    Copied {
        /// The unit.
        unit: Unit,
        /// Where to.
        to: Place,
    },
    /// The table has switched; the old place is free.
    Switched {
        /// The old place.
        free: Place,
    },
}

/// Writes past every guard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Intruder {
    /// It has not come.
    Outside,
    /// It has broken the witness of the content, and has not written yet.
    Inside,
    /// It has written.
    Gone,
}

/// What can happen now.
pub(crate) fn steps(steps: &mut Steps<'_>, scenario: &Scenario, flaw: Option<Flaw>) {
    freeze(steps, scenario, flaw);
    restart(steps, flaw);
    mover(steps, scenario);
    intruder(steps, scenario);
}

/// An instant without a write in flight: what is cached is flushed, and then the map is taken (H1). The earlier image ends.
fn freeze(steps: &mut Steps<'_>, scenario: &Scenario, flaw: Option<Flaw>) {
    let state = steps.state;
    // What is being moved is written to when that is done.
    let in_flight = state.writers.iter().any(|writer| *writer != Writer::Idle)
        || matches!(state.mover, Mover::Copied { .. });
    if state.left.freezes == 0 || in_flight || state.intruder == Intruder::Inside {
        return;
    }
    steps.add(("the host", None), "freezes the volume", None, |next| {
        next.left.freezes -= 1;
        next.image += 1;
        for unit in 0..scenario.units {
            next.frozen[at(next.image)][at(unit)] = next.live(unit);
        }
        let map = |state: &State, unit: usize| match state.disk[at(state.home[unit])] {
            Byte::Zero => Source::Zero,
            _ => Source::Origin,
        };
        let early: Vec<Source> = (0..at(scenario.units)).map(|unit| map(next, unit)).collect();
        if flaw != Some(Flaw::MapBeforeFlush) {
            for unit in 0..at(scenario.units) {
                if let Some(byte) = next.cached[unit].take() {
                    next.disk[at(next.home[unit])] = byte;
                }
            }
        }
        for (unit, early) in early.into_iter().enumerate() {
            next.map[unit] = if flaw == Some(Flaw::MapBeforeFlush) {
                early
            } else {
                map(next, unit)
            };
        }
        let first = next.next_generation();
        next.generation.fill(first);
        (next.slots_used, next.begun, next.lost) = (0, 0, false);
        None
    });
}

/// The host's agent is killed and comes back: every connection is lost, the frozen image is not. Generations are never used again
/// (H3): each start has its own.
fn restart(steps: &mut Steps<'_>, flaw: Option<Flaw>) {
    if steps.state.left.restarts == 0 || steps.state.image == 0 {
        return;
    }
    steps.add(("the host", None), "is killed and starts again", None, |next| {
        next.left.restarts -= 1;
        for handler in &mut next.handlers {
            if *handler != Handler::Idle {
                *handler = Handler::Lost;
            }
        }
        if flaw == Some(Flaw::GenerationsReused) {
            next.clock = 0;
        }
        let first = next.next_generation();
        next.generation.fill(first);
        None
    });
}

/// Copy, switch (with new generations for all that lies there, since any change of a table is one), and then the old place is
/// somebody else's.
fn mover(steps: &mut Steps<'_>, scenario: &Scenario) {
    const MOVER: (&str, Option<usize>) = ("the mover", None);
    match steps.state.mover {
        Mover::Idle { spare } => {
            if steps.state.left.moves == 0 {
                return;
            }
            for unit in 0..scenario.units {
                steps.add(MOVER, "copies the volume below", Some(unit), |next| {
                    next.left.moves -= 1;
                    next.disk[at(spare)] = next.disk[at(next.home[at(unit)])];
                    next.mover = Mover::Copied { unit, to: spare };
                    None
                });
            }
        }
        Mover::Copied { unit, to } => {
            steps.add(MOVER, "switches the table", Some(unit), |next| {
                let free = std::mem::replace(&mut next.home[at(unit)], to);
                let generation = next.next_generation();
                next.generation.fill(generation);
                next.mover = Mover::Switched { free };
                None
            });
        }
        Mover::Switched { free } => {
            steps.add(
                ("somebody else", None),
                "writes to the place that is free now",
                None,
                |next| {
                    next.disk[at(free)] = Byte::Foreign;
                    next.mover = Mover::Idle { spare: free };
                    None
                },
            );
        }
    }
}

/// It breaks the witness of the content first: a kernel delays whoever opens what is leased until that is so.
fn intruder(steps: &mut Steps<'_>, scenario: &Scenario) {
    const INTRUDER: (&str, Option<usize>) = ("an intruder", None);
    match steps.state.intruder {
        Intruder::Outside if steps.state.left.intrusions > 0 && steps.state.image > 0 => {
            steps.add(INTRUDER, "breaks the lease", None, |next| {
                next.left.intrusions -= 1;
                next.lost = true;
                next.intruder = Intruder::Inside;
                None
            });
        }
        Intruder::Inside => {
            for unit in 0..scenario.units {
                steps.add(INTRUDER, "overwrites the origin", Some(unit), |next| {
                    next.cached[at(unit)] = None;
                    next.disk[at(next.home[at(unit)])] = Byte::Foreign;
                    next.intruder = Intruder::Gone;
                    None
                });
            }
        }
        Intruder::Outside | Intruder::Gone => {}
    }
}
