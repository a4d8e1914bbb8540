//! Law I2 against the model: a proxy reads by the map, asks again, and keeps what is confirmed, while writers go on at every point.

use std::time::Duration;

use super::model::{CHUNK, CHUNK_LEN, World, frozen_byte};
use super::schedule::{Chooser, Drawn, Exhaustive};
use crate::frozen::lvm_snapshot::image::{LvmSnapshotImage, Patience};
use crate::frozen::{FrozenError, FrozenImage, StatusExtent};
use crate::range::ByteRange;

/// Nobody else would go on while the observer waits, so it does not.
const NO_PATIENCE: Patience = Patience {
    whole: Duration::ZERO,
    poll: Duration::ZERO,
};

/// How often each thing happened, so that the tests prove something.
#[derive(Default, Debug)]
struct Seen {
    kept: u64,
    moved: u64,
    gone: u64,
}

fn extents(image: &LvmSnapshotImage) -> Option<Vec<StatusExtent>> {
    let all = ByteRange::new(0, image.size()).unwrap();
    match image.status(all, usize::MAX) {
        Ok(status) => Some(status.extents),
        Err(FrozenError::Gone(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Generation and place on the LUN of a chunk.
fn of_chunk(image: &LvmSnapshotImage, extents: &[StatusExtent], chunk: u64) -> (u64, Option<u64>) {
    let extent = extents.iter().find(|e| e.range.contains(chunk * CHUNK)).unwrap();
    let place = extent.place.map(|mut place| {
        place.offset += chunk * CHUNK - extent.range.start();
        image.graph().resolve(place, CHUNK).disk().unwrap().offset
    });
    (extent.generation.to_wire(), place)
}

/// A proxy that wants `chunks`, in so many rounds. What was confirmed has to be the frozen bytes.
fn backup(world: &World, image: &LvmSnapshotImage, chunks: &[u64], rounds: usize, seen: &mut Seen) {
    let mut missing = chunks.to_owned();
    let Some(mut known) = extents(image) else {
        seen.gone += 1;
        return;
    };
    for _ in 0..rounds {
        let mut read = Vec::new();
        for &chunk in &missing {
            if let (generation @ 1.., Some(place)) = of_chunk(image, &known, chunk) {
                read.push((chunk, generation, world.read_lun(place)));
            }
        }
        let Some(confirmed) = extents(image) else {
            seen.gone += 1;
            return;
        };
        for (chunk, generation, byte) in read {
            if of_chunk(image, &confirmed, chunk).0 == generation {
                assert_eq!(byte, frozen_byte(chunk), "chunk {chunk} was confirmed");
                missing.retain(|c| *c != chunk);
                seen.kept += 1;
            } else {
                seen.moved += 1;
            }
        }
        known = confirmed;
    }
    for chunk in missing {
        let mut buf = [0; CHUNK_LEN];
        if image.read_at(chunk * CHUNK, &mut buf).is_ok() {
            assert!(
                buf.iter().all(|b| *b == frozen_byte(chunk)),
                "chunk {chunk} over NBD"
            );
        } else {
            seen.gone += 1;
        }
    }
}

/// Takes the place of a chooser that is needed again after the run.
struct Shared<C>(std::sync::Arc<std::sync::Mutex<C>>);

impl<C: Chooser> Chooser for Shared<C> {
    fn choose(&mut self, n: usize) -> usize {
        self.0.lock().unwrap().choose(n)
    }
}

/// Every run of one scenario; gives how many there are.
fn all_runs(scenario: impl Fn(Box<dyn Chooser>)) -> u64 {
    let chooser = std::sync::Arc::new(std::sync::Mutex::new(Exhaustive::default()));
    for runs in 1.. {
        scenario(Box::new(Shared(chooser.clone())));
        if !chooser.lock().unwrap().next_run() {
            return runs;
        }
    }
    unreachable!("runs end")
}

#[test]
fn no_stale_byte_is_confirmed_in_any_interleaving_with_one_writer() {
    let mut seen = std::cell::RefCell::new(Seen::default());
    let runs = all_runs(|chooser| {
        let world = World::new(2, 6, chooser);
        let image = world.image(NO_PATIENCE);
        world.begin(1);
        backup(&world, &image, &[0, 1], 1, &mut seen.borrow_mut());
    });
    let seen = seen.get_mut();
    assert!(
        runs > 1_000 && seen.kept > 100 && seen.moved > 100,
        "{runs} runs: {seen:?}"
    );
}

/// The seeds are the numbers from 1 on: a failure names its own.
fn drawn_runs(seeds: u64, mut scenario: impl FnMut(Box<dyn Chooser>)) {
    for seed in 1..=seeds {
        eprintln!("seed {seed}");
        scenario(Box::new(Drawn(seed)));
    }
}

#[test]
fn no_stale_byte_is_confirmed_with_two_writers() {
    let mut seen = Seen::default();
    drawn_runs(2_000, |chooser| {
        let world = World::new(2, 6, chooser);
        let image = world.image(NO_PATIENCE);
        world.begin(0);
        world.begin(1);
        backup(&world, &image, &[0, 1], 3, &mut seen);
    });
    assert!(seen.kept > 1_000 && seen.moved > 500, "{seen:?}");
}

#[test]
fn no_stale_byte_is_confirmed_when_the_copy_area_is_full() {
    let mut seen = Seen::default();
    drawn_runs(2_000, |chooser| {
        // Room for one copy.
        let world = World::new(2, 3, chooser);
        let image = world.image(NO_PATIENCE);
        world.begin(0);
        world.begin(1);
        backup(&world, &image, &[0, 1], 2, &mut seen);
    });
    assert!(seen.kept > 100 && seen.gone > 500, "{seen:?}");
}

/// 31 entries fill all but 16 bytes of the first sector of the log: the next two are written in two sectors, the second one first.
#[test]
fn no_stale_byte_is_confirmed_while_the_log_is_half_written() {
    let mut seen = Seen::default();
    drawn_runs(1_000, |chooser| {
        let world = World::new(36, 60, Box::new(super::schedule::Nobody));
        for chunk in 0..31 {
            world.write(chunk);
        }
        world.inner().choose_by(chooser);
        let image = world.image(NO_PATIENCE);
        for chunk in 31..35 {
            world.begin(chunk);
        }
        backup(&world, &image, &[30, 31, 32, 33, 34, 35], 4, &mut seen);
    });
    assert!(seen.kept > 1_000 && seen.moved > 100, "{seen:?}");
}

#[test]
fn no_stale_byte_is_confirmed_with_many_writers_across_areas() {
    let mut seen = Seen::default();
    drawn_runs(100, |chooser| {
        let world = World::new(300, 320, Box::new(super::schedule::Nobody));
        for chunk in 0..253 {
            world.write(chunk);
        }
        world.inner().choose_by(chooser);
        let image = world.image(NO_PATIENCE);
        for chunk in 253..259 {
            world.begin(chunk);
        }
        let wanted: Vec<u64> = (251..262).collect();
        backup(&world, &image, &wanted, 5, &mut seen);
    });
    assert!(seen.kept > 300 && seen.moved > 20, "{seen:?}");
}
