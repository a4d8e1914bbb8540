//! Bounds of a world: who is in it, and how often each may act.

use crate::state::Unit;

/// Who keeps the old data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provider {
    /// Our own copy-before-write: the host keeps the map, and writers come through it and its page cache.
    Cow,
    /// A snapshot of the kernel: old data is recorded in a log, which grows after the live status says so.
    Snapshot,
}

/// A bounded world.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Who keeps the old data.
    pub provider: Provider,
    /// Units of the origin, at most [`UNITS`](crate::UNITS).
    pub units: u8,
    /// Whether the last unit has never been written.
    pub hole: bool,
    /// Whether the place switches in one step, and the generation rises in the next: before the write, as ever.
    pub switch_in_two: bool,
    /// Writes, by two writers.
    pub writes: u8,
    /// Times that the volume below a unit is moved.
    pub moves: u8,
    /// Freezes; the earlier image ends with the next.
    pub freezes: u8,
    /// Restarts of the host's agent.
    pub restarts: u8,
    /// Writers that come past every guard.
    pub intrusions: u8,
    /// For each connection of the proxy, the batches that it fetches, each the units of it.
    pub batches: &'static [&'static [&'static [Unit]]],
    /// How often a unit is read directly before it is read through the host.
    pub rounds: u8,
    /// Whether the proxy may read any unit through the host.
    pub through_host: bool,
    /// Whether it is a violation to read by an outdated map, though nothing of it would be kept (P0).
    pub minds_outdated: bool,
}

impl Scenario {
    /// One image, one connection, one batch of everything; nobody acts but the proxy.
    pub const STILL: Self = Self {
        provider: Provider::Cow,
        units: 2,
        hole: false,
        switch_in_two: false,
        writes: 0,
        moves: 0,
        freezes: 1,
        restarts: 0,
        intrusions: 0,
        batches: &[&[&[0, 1]]],
        rounds: 2,
        through_host: false,
        minds_outdated: true,
    };
}
