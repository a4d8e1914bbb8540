//! What two snapshots tell to have changed between them, while writers go on at every point.

use std::time::Duration;

use super::model::{CHUNK, World, frozen_byte};
use super::schedule::{Chooser, Drawn, Exhaustive, Nobody};
use crate::frozen::lvm_snapshot::image::Patience;
use crate::frozen::{ChangedMap, FrozenImage, NoLineage};

/// Nobody else would go on while the observer waits, so it does not.
const NO_PATIENCE: Patience = Patience {
    whole: Duration::ZERO,
    poll: Duration::ZERO,
};

/// Whether each chunk is told to be the same.
fn same(map: &ChangedMap, chunks: u64) -> Vec<bool> {
    (0..chunks).map(|chunk| !map.is_changed(chunk * CHUNK)).collect()
}

/// A second snapshot is frozen between steps of the writers of some chunks; tells whether it was told what changed.
fn run(chunks: u64, written: &[u64], chooser: Box<dyn Chooser>) -> bool {
    let world = World::new(chunks, 40, chooser);
    let older = world.image(NO_PATIENCE);
    for &chunk in written {
        world.begin(chunk);
    }
    // Whatever the writers did until here is in the second snapshot.
    let frozen = world.origin_bytes();
    let newer = world.snapshot_of_the_same_origin();
    match newer.changed_since(&older) {
        Ok(map) => {
            for (chunk, same) in (0..).zip(same(&map, chunks)) {
                let byte = frozen[usize::try_from(chunk).unwrap()];
                assert!(
                    !same || byte == frozen_byte(chunk),
                    "chunk {chunk} is not the same"
                );
                assert!(same || written.contains(&chunk), "nobody wrote to chunk {chunk}");
            }
            true
        }
        Err(NoLineage::NotNow(_)) => false,
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn whatever_a_writer_does_at_any_point_is_told_or_nothing_is() {
    let mut told = [0_u32; 2];
    // Given back by the world, to go on with.
    let shared = std::sync::Arc::new(std::sync::Mutex::new(Exhaustive::default()));
    struct Shared(std::sync::Arc<std::sync::Mutex<Exhaustive>>);
    impl Chooser for Shared {
        fn choose(&mut self, n: usize) -> usize {
            self.0.lock().unwrap().choose(n)
        }
    }
    loop {
        let was_told = run(2, &[0], Box::new(Shared(shared.clone())));
        told[usize::from(was_told)] += 1;
        if !shared.lock().unwrap().next_run() {
            break;
        }
    }
    assert!(told.iter().all(|runs| *runs > 3), "{told:?}");
}

#[test]
fn whatever_many_writers_do_is_told_or_nothing_is() {
    let mut told = 0;
    for seed in 1..=4000 {
        let mut dice = Drawn(seed * 0x9e37_79b9);
        let written: Vec<u64> = (0..1 + dice.choose(9)).map(|_| dice.choose(12) as u64).collect();
        told += u32::from(run(12, &written, Box::new(Drawn(seed))));
    }
    assert!(told > 400, "{told}");
}

#[test]
fn what_was_written_before_the_second_freeze_is_told_once_and_what_comes_later_too() {
    let world = World::new(12, 40, Box::new(Nobody));
    let older = world.image(NO_PATIENCE);
    assert!(older.keep_as_parent());
    for chunk in [3, 4, 3, 9] {
        world.write(chunk);
    }
    let newer = world.snapshot_of_the_same_origin();
    let told = |expected: &[u64]| {
        let same = same(&newer.changed_since(&older).unwrap(), 12);
        let changed: Vec<u64> = (0..12)
            .filter(|chunk| !same[usize::try_from(*chunk).unwrap()])
            .collect();
        assert_eq!(changed, expected);
    };
    told(&[3, 4, 9]);
    world.write(11);
    told(&[3, 4, 9, 11]);
    // The layers below do not matter for it.
    world.inner().witness = Err("a table changed".to_owned());
    told(&[3, 4, 9, 11]);

    let stranger = World::new(12, 40, Box::new(Nobody)).image(NO_PATIENCE);
    assert_eq!(stranger.changed_since(&older), Err(NoLineage::Unrelated));
    newer.thaw();
    assert!(matches!(newer.changed_since(&older), Err(NoLineage::Newer(_))));
    let newer = world.snapshot_of_the_same_origin();
    world.inner().lost = Some("Invalid".to_owned());
    assert!(matches!(newer.changed_since(&older), Err(NoLineage::Older(_))));
    assert!(!older.keep_as_parent());
}
