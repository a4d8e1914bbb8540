//! Many worlds, one after the other, for as long as there is time.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_client::pipeline::random_below;

use crate::cow::{self, CowVolume};
use crate::dice::Dice;
use crate::medium::Flaw;
use crate::moved::{self, MovedVolume};
use crate::snapshot::{self, SnapshotVolume};
use crate::world::{Counts, World};

/// Seconds, if nobody says otherwise.
const SECONDS: u64 = 20;
/// What a simulation of two minutes and more does at least.
const STEPS_MIN: u64 = 1_000_000;

/// Whose turn it is to be backed up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Cow,
    Snapshot,
    Moved,
    /// A snapshot whose host makes a mistake.
    TrustedStatus,
    /// Copy-before-write on a copy area that is told to write through, and does so later.
    LateCopy,
    /// Copy-before-write on an origin that is told to sync, and does so later.
    LateSync,
}

const KINDS: [Kind; 3] = [Kind::Cow, Kind::Snapshot, Kind::Moved];

fn world(kind: Kind, seed: u64) -> Arc<World> {
    let dice = Dice::new(!seed);
    let cow = |flaws| {
        World::new(seed, cow::disks(&dice), |weak, dice, disks| {
            CowVolume::new(weak, dice, disks, flaws)
        })
    };
    match kind {
        Kind::Cow => cow([Flaw::None; 2]),
        Kind::LateCopy => cow([Flaw::None, Flaw::KeepsWhatIsWrittenThrough]),
        Kind::LateSync => cow([Flaw::SyncsNothing, Flaw::None]),
        Kind::Snapshot | Kind::TrustedStatus => {
            World::new(seed, snapshot::disks(&dice), |weak, dice, disks| {
                SnapshotVolume::new(weak, dice, disks, kind == Kind::TrustedStatus)
            })
        }
        Kind::Moved => World::new(seed, moved::disks(&dice), MovedVolume::new),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text}")),
    )
}

/// Runs one world to its end. What happened last is told where it goes wrong, or where it was asked for by its seed.
fn run(kind: Kind, seed: u64, tells: bool) -> Counts {
    let world = world(kind, seed);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    if tells || ran.is_err() {
        world.tell();
        println!("{kind:?}: repeat this with SIMULATION_SEED={seed}");
    }
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}

fn kind_of(seed: u64) -> Kind {
    KINDS[(seed % KINDS.len() as u64) as usize]
}

#[test]
fn no_stale_byte_is_ever_committed_whatever_the_order() {
    if let Some(seed) = number("SIMULATION_SEED") {
        println!("{:?}", run(kind_of(seed), seed, true));
        return;
    }
    let seconds = number("SIMULATION_SECONDS").unwrap_or(SECONDS);
    let first = random_below(1 << 40);
    let begun = Instant::now();
    let mut totals = KINDS.map(|kind| (kind, 0, Counts::default()));
    let mut seed = first;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let counts = run(kind_of(seed), seed, false);
        let total = &mut totals[(seed % KINDS.len() as u64) as usize];
        total.1 += 1;
        total.2.add(&counts);
        seed += 1;
    }
    let took = begun.elapsed().as_secs_f64();
    println!("seeds {first} to {}, {took:.0} s", seed - 1);
    let mut steps = 0;
    for (kind, worlds, counts) in totals {
        println!("{kind:?}: {worlds} worlds, {counts:?}");
        steps += counts.steps;
        // A world in which nothing happens proves nothing.
        assert!(
            counts.completed > 0 && counts.direct > 0 && counts.nbd > 0,
            "{kind:?}"
        );
        assert!(
            counts.moved > 0 && counts.remapped > 0 && counts.gone > 0,
            "{kind:?}"
        );
    }
    let worlds = seed - first;
    println!("{worlds} interleavings, {steps} steps");
    assert!(seconds < 120 || steps >= STEPS_MIN, "only {steps} steps");
}

/// The simulation would see it, within so many worlds.
fn assert_found_out(kind: Kind, worlds: u64) {
    let found = (0..worlds).find(|&seed| {
        let world = world(kind, seed);
        catch_unwind(AssertUnwindSafe(|| world.run())).is_err()
    });
    println!("{kind:?}: found with seed {found:?}");
    assert!(found.is_some());
}

/// A host that takes the number in the live status for the length of the log that it read.
#[test]
fn a_generation_from_the_live_status_is_found_out() {
    assert_found_out(Kind::TrustedStatus, 20_000);
}

/// A place is told before the old bytes are on the device (law H1).
#[test]
fn a_copy_that_is_on_the_device_too_late_is_found_out() {
    assert_found_out(Kind::LateCopy, 2000);
}

/// Places are told of what the freeze left in the cache (law H1).
#[test]
fn a_sync_that_leaves_something_in_the_cache_is_found_out() {
    assert_found_out(Kind::LateSync, 2000);
}

#[test]
fn a_seed_repeats_a_world() {
    for seed in 0..60 {
        let once = run(kind_of(seed), seed, false);
        let again = run(kind_of(seed), seed, false);
        assert_eq!(format!("{once:?}"), format!("{again:?}"));
    }
}
