//! A disk that hangs under one origin of an agent: its freezes end in an error, and all else goes on.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_export::error::ErrorKind;
use nbd_export::host::OriginSource;
use tests::cow::backing::{Operation, Side};
use tests::cow::hold::Hold;
use tests::cow::world::{Stage, VOLUME, World};
use volmap::cow::{CopyAreaSpec, OnFull, Origin};
use volmap::generation::GenerationClock;
use volmap::layers::Layers;
use volmap::limits::{COPY_AREA_HEADER, COPY_UNIT};

use super::{ALL_UNITS, SIZE};

const OTHER: &str = "other";

/// A deadline that a disk which does not hang meets on a busy machine.
const WITHIN: Duration = Duration::from_secs(5);
/// Deadlines of one freeze one after another, and some more; less than the patience of a [`Hold`].
const SOON: Duration = Duration::from_secs(30);

/// Another origin of the same agent, on a disk of its own.
fn add_other(world: &World) {
    let path = world.scratch(OTHER);
    File::create_new(&path).unwrap().set_len(COPY_UNIT).unwrap();
    let spec = CopyAreaSpec {
        path: world.scratch("others-copies"),
        size: Some(COPY_AREA_HEADER + COPY_UNIT),
        on_full: OnFull::Break,
    };
    let layers = Arc::new(Layers::new(Vec::new()).unwrap());
    let clock = Arc::new(GenerationClock::start().unwrap());
    let live = Origin::open(&path, &spec, layers, clock).unwrap();
    let source = Arc::new(OriginSource::new(path, live));
    world.host.add(&OTHER.parse().unwrap(), source).unwrap();
}

#[test]
fn a_disk_that_hangs_costs_the_freezes_of_its_own_origin_alone() {
    let world = World::open_hurried(Stage::TwoDisks, SIZE, ALL_UNITS, WITHIN);
    add_other(&world);
    let earlier = world.freeze("earlier");
    let hold = Hold::new();
    let point = hold.point();
    world.hooks.set(move |moment| {
        if (moment.side, moment.operation, moment.done) == (Side::Origin, Operation::Sync, false) {
            point.pass();
        }
    });
    for id in ["first", "second"] {
        let begun = Instant::now();
        let refused = world.host.freeze(VOLUME, Some(id)).unwrap_err();
        assert!(begun.elapsed() < SOON, "{refused}");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        let made = world.host.freeze(OTHER, Some(id)).unwrap();
        world.host.thaw(&made[0].export).unwrap();
    }
    hold.wait();
    world.thaw(&earlier);
    let listing = world.host.list();
    let left = listing.volumes.iter().map(|volume| volume.frozen.len());
    assert_eq!(left.sum::<usize>(), 0, "nothing is left of any of them");
    hold.release();
    let begun = Instant::now();
    while let Err(refused) = world.host.freeze(VOLUME, Some("first")) {
        assert!(begun.elapsed() < SOON, "{refused}");
    }
}
