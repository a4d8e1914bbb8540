//! Everything that there is in the world at one instant.

use std::fmt;

use crate::changes::{Intruder, Mover};
use crate::host::Handler;
use crate::proxy::Fetcher;
use crate::scenario::Scenario;
use crate::writer::Writer;

/// Most units of a world.
pub const UNITS: usize = 3;
/// Places of the disk: the origin's, the copy area's, and one that is spare.
const PLACES: usize = 2 * UNITS + 1;
/// Most frozen images of a world, one after the other.
const IMAGES: usize = 3;
/// Connections of the proxy.
pub(crate) const CONNECTIONS: usize = 2;

/// A unit of the origin.
pub type Unit = u8;
/// A place on the disk.
pub type Place = u8;
/// The stamp of a mapping.
pub type Generation = u8;

/// What a unit holds: every write writes something that nobody wrote before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Byte {
    /// Zero: never written.
    Zero,
    /// What a unit held at the beginning.
    Original(Unit),
    /// What the n-th write wrote.
    Written(u8),
    /// What a slot of the copy area holds before anything is copied there.
    Blank,
    /// Somebody else's.
    Foreign,
}

/// Where the frozen bytes of a unit are, as the provider's map has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// Zeroes, known from the freeze.
    Zero,
    /// In the origin, wherever that lies.
    Origin,
    /// In the copy area.
    Slot(u8),
}

/// Where the host says that a unit can be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Location {
    /// It is zero and need not be read.
    Zero,
    /// There.
    At(Place),
}

/// How often who may still act.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Left {
    pub(crate) writes: u8,
    pub(crate) moves: u8,
    pub(crate) freezes: u8,
    pub(crate) restarts: u8,
    pub(crate) intrusions: u8,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    // The disk, and the page cache above the origin.
    pub(crate) disk: [Byte; PLACES],
    pub(crate) cached: [Option<Byte>; UNITS],
    /// Where the units of the origin lie.
    pub(crate) home: [Place; UNITS],

    // The frozen image: what the provider knows of it.
    /// Its number; 0 before the first freeze.
    pub(crate) image: u8,
    pub(crate) map: [Source; UNITS],
    pub(crate) generation: [Generation; UNITS],
    /// The last generation that was given.
    pub(crate) clock: Generation,
    pub(crate) slots_used: u8,
    /// Copies that were begun, as the live status of a snapshot tells.
    pub(crate) begun: u8,
    /// The content may have been changed by somebody else.
    pub(crate) lost: bool,

    // Those who act.
    pub(crate) writers: [Writer; 2],
    pub(crate) mover: Mover,
    pub(crate) intruder: Intruder,
    pub(crate) handlers: [Handler; CONNECTIONS],
    pub(crate) fetchers: [Fetcher; CONNECTIONS],
    pub(crate) left: Left,

    // What nobody in the world looks at.
    /// What each image held at its freeze.
    pub(crate) frozen: [[Byte; UNITS]; IMAGES],
}

/// Something that must never happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A byte was kept that the frozen image did not hold (I1, I2).
    StaleByte {
        /// The unit.
        unit: Unit,
        /// What was kept.
        kept: Byte,
        /// What it should have been.
        frozen: Byte,
    },
    /// A unit was read by a map that the last confirmation had outdated (P0).
    OutdatedMap {
        /// The unit.
        unit: Unit,
    },
}

/// What somebody does, and what comes of it.
pub struct Step {
    /// Who does what, in words.
    pub action: Action,
    /// The world after it.
    pub next: State,
    /// What should not have happened.
    pub violation: Option<Violation>,
}

/// Who does what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Action {
    /// Who, and on which connection.
    pub actor: (&'static str, Option<usize>),
    /// What.
    pub deed: &'static str,
    /// To which unit.
    pub unit: Option<Unit>,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, connection) = self.actor;
        match connection {
            Some(number) => write!(f, "{name} (connection {number}) {}", self.deed)?,
            None => write!(f, "{name} {}", self.deed)?,
        }
        match self.unit {
            Some(unit) => write!(f, " [unit {unit}]"),
            None => Ok(()),
        }
    }
}

/// Collects what can happen in a state.
pub(crate) struct Steps<'a> {
    pub(crate) state: &'a State,
    pub(crate) found: &'a mut Vec<Step>,
}

impl Steps<'_> {
    /// Somebody can do this.
    pub(crate) fn add(
        &mut self,
        actor: (&'static str, Option<usize>),
        deed: &'static str,
        unit: Option<Unit>,
        change: impl FnOnce(&mut State) -> Option<Violation>,
    ) {
        let mut next = self.state.clone();
        let violation = change(&mut next);
        next.writers.sort_unstable();
        self.found.push(Step {
            action: Action { actor, deed, unit },
            next,
            violation,
        });
    }
}

/// The index of a small number.
pub(crate) fn at(number: u8) -> usize {
    usize::from(number)
}

/// A small number of an index.
pub(crate) fn small(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX)
}

impl State {
    /// The world before anything happened: nothing is frozen, everything lies in its place.
    pub(crate) fn start(scenario: &Scenario) -> Self {
        let mut disk = [Byte::Blank; PLACES];
        for unit in 0..scenario.units {
            let is_hole = scenario.hole && unit + 1 == scenario.units;
            disk[at(unit)] = if is_hole { Byte::Zero } else { Byte::Original(unit) };
        }
        Self {
            disk,
            cached: [None; UNITS],
            home: [0, 1, 2],
            image: 0,
            map: [Source::Origin; UNITS],
            generation: [0; UNITS],
            clock: 0,
            slots_used: 0,
            begun: 0,
            lost: false,
            writers: [Writer::Idle; 2],
            mover: Mover::Idle {
                spare: small(PLACES - 1),
            },
            intruder: Intruder::Outside,
            handlers: [Handler::Idle; CONNECTIONS],
            fetchers: [Fetcher::START; CONNECTIONS],
            left: Left {
                writes: scenario.writes,
                moves: scenario.moves,
                freezes: scenario.freezes,
                restarts: scenario.restarts,
                intrusions: scenario.intrusions,
            },
            frozen: [[Byte::Blank; UNITS]; IMAGES],
        }
    }

    /// A generation that was never given before (H3).
    pub(crate) fn next_generation(&mut self) -> Generation {
        self.clock += 1;
        self.clock
    }

    /// What whoever reads the origin through the host's page cache gets.
    pub(crate) fn live(&self, unit: Unit) -> Byte {
        self.cached[at(unit)].unwrap_or(self.disk[at(self.home[at(unit)])])
    }

    /// The place of a slot of the copy area.
    pub(crate) fn slot_place(slot: u8) -> Place {
        small(UNITS) + slot
    }

    /// Where the map says that a unit can be read.
    pub(crate) fn location(&self, unit: Unit) -> Location {
        match self.map[at(unit)] {
            Source::Zero => Location::Zero,
            Source::Origin => Location::At(self.home[at(unit)]),
            Source::Slot(slot) => Location::At(Self::slot_place(slot)),
        }
    }

    /// What a direct read of a location gets at this instant.
    pub(crate) fn on_disk(&self, location: Location) -> Byte {
        match location {
            Location::Zero => Byte::Zero,
            Location::At(place) => self.disk[at(place)],
        }
    }

    /// Judges a byte that a backup of `image` keeps.
    pub(crate) fn judge(&self, image: u8, unit: Unit, kept: Byte) -> Option<Violation> {
        let frozen = self.frozen[at(image)][at(unit)];
        (kept != frozen).then_some(Violation::StaleByte { unit, kept, frozen })
    }
}
