//! Every order of all steps, breadth first: the first violation found is one of the shortest.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use crate::flaw::Flaw;
use crate::proxy::Phase;
use crate::scenario::Scenario;
use crate::state::{Action, State, Step, Steps, Violation};
use crate::{changes, host, proxy, writer};

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps from one to another.
    pub steps: usize,
    /// States in which every connection of the proxy has all that it wanted.
    pub completed: usize,
    /// States in which the proxy stopped because the image was gone.
    pub stopped: usize,
    /// States in which nobody can do anything although the proxy has not come to its end.
    pub stuck: usize,
    /// How often who did what.
    pub deeds: BTreeMap<(&'static str, &'static str), usize>,
    /// How something happened that must not, if it did.
    pub violation: Option<Trace>,
}

/// From the beginning to a violation.
#[derive(Debug)]
pub struct Trace {
    /// Who did what.
    pub actions: Vec<Action>,
    /// What came of it.
    pub violation: Violation,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, action) in self.actions.iter().enumerate() {
            writeln!(f, "{:>3}. {action}", number + 1)?;
        }
        match self.violation {
            Violation::StaleByte { unit, kept, frozen } => {
                write!(
                    f,
                    "  => {kept:?} is kept for unit {unit}, which was {frozen:?} when it was frozen"
                )
            }
            Violation::OutdatedMap { unit } => write!(
                f,
                "  => unit {unit} is read by a map of which the last confirmation said that it had moved"
            ),
        }
    }
}

/// Tries everything that can happen in a scenario.
///
/// # Panics
/// There are more than 2^32 states.
pub fn explore(scenario: &Scenario, flaw: Option<Flaw>) -> Report {
    let start = State::start(scenario);
    // Where each state was first come to from, and by what.
    let mut from: Vec<Option<(u32, Action)>> = vec![None];
    let mut seen: HashMap<State, u32> = HashMap::from([(start.clone(), 0)]);
    let mut waiting = VecDeque::from([(start, 0)]);
    let mut report = Report {
        states: 0,
        steps: 0,
        completed: 0,
        stopped: 0,
        stuck: 0,
        deeds: BTreeMap::new(),
        violation: None,
    };
    let mut found = Vec::new();
    while let Some((state, number)) = waiting.pop_front() {
        report.states += 1;
        count(&mut report, &state, scenario);
        steps_of(&state, scenario, flaw, &mut found);
        let over = (0..scenario.batches.len()).all(|c| state.fetchers[c].is_over());
        report.stuck += usize::from(found.is_empty() && !over);
        for Step {
            action,
            next,
            violation,
        } in found.drain(..)
        {
            report.steps += 1;
            *report.deeds.entry((action.actor.0, action.deed)).or_default() += 1;
            if let Some(violation) = violation {
                let mut actions = vec![action];
                let mut at = number;
                while let Some((earlier, action)) = from[at as usize] {
                    actions.push(action);
                    at = earlier;
                }
                actions.reverse();
                report.violation = Some(Trace { actions, violation });
                return report;
            }
            let count = u32::try_from(from.len()).expect("states are counted in 32 bits");
            if let Entry::Vacant(entry) = seen.entry(next) {
                waiting.push_back((entry.key().clone(), count));
                entry.insert(count);
                from.push(Some((number, action)));
            }
        }
    }
    report
}

fn steps_of(state: &State, scenario: &Scenario, flaw: Option<Flaw>, found: &mut Vec<Step>) {
    let mut steps = Steps { state, found };
    writer::steps(&mut steps, scenario, flaw);
    changes::steps(&mut steps, scenario, flaw);
    host::steps(&mut steps, scenario, flaw);
    proxy::steps(&mut steps, scenario, flaw);
}

fn count(report: &mut Report, state: &State, scenario: &Scenario) {
    let mut phases = state
        .fetchers
        .iter()
        .take(scenario.batches.len())
        .map(|f| f.phase);
    report.completed += usize::from(phases.clone().all(|phase| phase == Phase::Done));
    report.stopped += usize::from(phases.any(|phase| phase == Phase::Stopped));
}
