//! A write to the origin while a frozen image lives: the order of its steps is laws H1 and H2.
//!
//! 1. The old data is read, and written to the copy area, and that has completed (H1).
//! 2. In one critical section the place switches to the copy area and the generation rises (H2, H4).
//! 3. Only then does the write go to the origin.
//!
//! A snapshot of the kernel does the same; its live status counts the copy before it begins, and the switch is the record in its
//! log. A second writer of the unit waits until the first one's copy stands, and then goes to the origin at once.

use crate::changes::Mover;
use crate::flaw::Flaw;
use crate::scenario::{Provider, Scenario};
use crate::state::{Byte, Source, State, Steps, Unit, at};

/// A step of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Count,
    ReadOld,
    Copy,
    Switch,
    Raise,
    SwitchAndRaise,
    Write,
}

/// Where a writer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Writer {
    /// It has nothing to write.
    Idle,
    /// It keeps the old data of a unit.
    Keeping(Keeping),
    /// It may go to the origin.
    Writing {
        /// The unit.
        unit: Unit,
        /// Which write it is.
        number: u8,
    },
}

/// The old data of a unit on its way to the copy area.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Keeping {
    unit: Unit,
    /// Which write it is for.
    number: u8,
    /// Steps done.
    done: u8,
    /// The slot that it is copied to.
    slot: u8,
    /// What was read.
    held: Option<Byte>,
}

/// The order of a write.
fn order(scenario: &Scenario, flaw: Option<Flaw>) -> &'static [Op] {
    use Op::{Copy, Count, Raise, ReadOld, Switch, SwitchAndRaise, Write};
    match (flaw, scenario.provider) {
        (Some(Flaw::SwitchBeforeCopy), _) => &[ReadOld, SwitchAndRaise, Copy, Write],
        (Some(Flaw::RaiseAfterWrite), _) => &[ReadOld, Copy, Switch, Write, Raise],
        (Some(Flaw::SwitchAfterWrite), _) => &[ReadOld, Copy, Write, SwitchAndRaise],
        (Some(Flaw::RaiseBeforeSwitch), _) => &[ReadOld, Copy, Raise, Switch, Write],
        // The other way round is allowed: beside the new place, the old generation only costs a second read.
        _ if scenario.switch_in_two => &[ReadOld, Copy, Switch, Raise, Write],
        (_, Provider::Cow) => &[ReadOld, Copy, SwitchAndRaise, Write],
        (_, Provider::Snapshot) => &[Count, ReadOld, Copy, SwitchAndRaise, Write],
    }
}

const WRITER: &str = "a writer";

/// What writers, and the page cache, can do now.
pub(crate) fn steps(steps: &mut Steps<'_>, scenario: &Scenario, flaw: Option<Flaw>) {
    // They are sorted, so the idle ones come first; and idle ones are alike.
    if steps.state.writers[0] == Writer::Idle && steps.state.left.writes > 0 {
        begin(steps, scenario, flaw);
    }
    for (index, writer) in steps.state.writers.iter().enumerate() {
        match *writer {
            Writer::Idle => {}
            Writer::Keeping(keeping) => keep(steps, index, keeping, scenario, flaw),
            Writer::Writing { unit, number } => {
                if !is_being_moved(steps.state, unit) {
                    steps.add((WRITER, None), "writes to the origin", Some(unit), |next| {
                        write(next, unit, number, scenario);
                        next.writers[index] = Writer::Idle;
                        None
                    });
                }
            }
        }
    }
    write_back(steps, scenario);
}

/// A writer takes up a write. From here to its end a freeze waits for it.
fn begin(steps: &mut Steps<'_>, scenario: &Scenario, flaw: Option<Flaw>) {
    for unit in 0..scenario.units {
        let moved = steps.state.image == 0 || steps.state.map[at(unit)] != Source::Origin;
        let kept_now = |w: &Writer| matches!(w, Writer::Keeping(keeping) if keeping.unit == unit);
        let other = steps.state.writers.iter().any(kept_now);
        if other && flaw != Some(Flaw::SecondWriterOvertakes) {
            continue;
        }
        steps.add((WRITER, None), "begins a write", Some(unit), |next| {
            next.left.writes -= 1;
            let number = scenario.writes - next.left.writes;
            next.writers[0] = if moved || other {
                Writer::Writing { unit, number }
            } else {
                let slot = next.slots_used;
                next.slots_used += 1;
                Writer::Keeping(Keeping {
                    unit,
                    number,
                    done: 0,
                    slot,
                    held: None,
                })
            };
            None
        });
    }
}

fn keep(steps: &mut Steps<'_>, index: usize, keeping: Keeping, scenario: &Scenario, flaw: Option<Flaw>) {
    let Keeping {
        unit,
        number,
        done,
        slot,
        held,
    } = keeping;
    let order = order(scenario, flaw);
    let op = order[at(done)];
    let is_last = at(done) + 1 == order.len();
    let deed = match op {
        Op::Count => "is counted in the live status",
        Op::ReadOld => "has read the old data",
        Op::Copy => "has written the copy",
        Op::Switch => "switches the place",
        Op::Raise => "raises the generation",
        Op::SwitchAndRaise => "switches the place and raises the generation",
        Op::Write if is_last => "has kept the old data",
        Op::Write => "writes to the origin, too early",
    };
    steps.add((WRITER, None), deed, Some(unit), |next| {
        let mut held = held;
        match op {
            Op::Count => next.begun += 1,
            Op::ReadOld => held = Some(next.live(unit)),
            Op::Copy => next.disk[at(State::slot_place(slot))] = held.unwrap_or(Byte::Blank),
            Op::Switch => next.map[at(unit)] = Source::Slot(slot),
            Op::Raise => next.generation[at(unit)] = next.next_generation(),
            Op::SwitchAndRaise => {
                next.map[at(unit)] = Source::Slot(slot);
                next.generation[at(unit)] = next.next_generation();
            }
            Op::Write if is_last => {}
            Op::Write => write(next, unit, number, scenario),
        }
        next.writers[index] = match (is_last, op) {
            // Left to `Writing`, where a second writer of the unit comes at once.
            (true, Op::Write) => Writer::Writing { unit, number },
            (true, _) => Writer::Idle,
            (false, _) => Writer::Keeping(Keeping {
                done: done + 1,
                held,
                ..keeping
            }),
        };
        None
    });
}

/// Into the page cache of the host, or past it.
fn write(next: &mut State, unit: Unit, number: u8, scenario: &Scenario) {
    let byte = Byte::Written(number);
    match scenario.provider {
        Provider::Cow => next.cached[at(unit)] = Some(byte),
        Provider::Snapshot => next.disk[at(next.home[at(unit)])] = byte,
    }
}

/// The kernel writes a dirty page whenever it likes.
fn write_back(steps: &mut Steps<'_>, scenario: &Scenario) {
    for unit in 0..scenario.units {
        if let Some(byte) = steps.state.cached[at(unit)]
            && !is_being_moved(steps.state, unit)
        {
            steps.add(("the kernel", None), "writes a dirty page", Some(unit), |next| {
                next.disk[at(next.home[at(unit)])] = byte;
                next.cached[at(unit)] = None;
                None
            });
        }
    }
}

/// What is written to a unit waits while the volume below it is moved.
fn is_being_moved(state: &State, unit: Unit) -> bool {
    matches!(state.mover, Mover::Copied { unit: moving, .. } if moving == unit)
}
