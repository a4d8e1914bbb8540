//! What is told to have changed between two freezes: all of what was written between them, and nothing else.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::cow::tests::bench::{Bench, Hold, read_all};
use crate::cow::tests::model::Dice;
use crate::cow::tests::races::{REQUESTS, between_switch_and_write};
use crate::frozen::{FrozenImage, NoLineage};
use crate::limits::{COPY_UNIT, LINEAGE_MAX};
use crate::storage::Standing;

/// Units that changed, by the map of the newer image.
pub(super) fn changed(newer: &dyn FrozenImage, older: &dyn FrozenImage) -> Option<BTreeSet<u64>> {
    let map = newer.changed_since(older).ok()?;
    assert_eq!((map.size(), map.granule()), (newer.size(), COPY_UNIT));
    let units = newer.size().div_ceil(COPY_UNIT);
    Some(
        (0..units)
            .filter(|unit| map.is_changed(unit * COPY_UNIT))
            .collect(),
    )
}

fn units(of: impl IntoIterator<Item = u64>) -> Option<BTreeSet<u64>> {
    Some(of.into_iter().collect())
}

#[test]
fn every_kind_of_request_is_marked_also_before_the_first_freeze_and_while_none_lives() {
    let bench = Bench::full(10 * COPY_UNIT, 20);
    let live = &bench.live;
    live.write_at(9 * COPY_UNIT, &[1], false).unwrap();
    let one = live.freeze().unwrap();
    live.write_at(COPY_UNIT - 1, &[1; 2], false).unwrap();
    live.write_at(5, &[], false).unwrap();
    live.trim(3 * COPY_UNIT + 7, 1, false).unwrap();
    live.write_zeroes(4 * COPY_UNIT, 1, true, false).unwrap();
    assert!(one.keep_as_parent());
    live.write_zeroes(5 * COPY_UNIT, 1, false, false).unwrap();
    live.write_zeroes_fast(7 * COPY_UNIT, COPY_UNIT, false, false)
        .unwrap();
    assert!(
        live.write_zeroes_fast(8 * COPY_UNIT, COPY_UNIT, true, false)
            .is_err()
    );
    assert!(live.write_at(10 * COPY_UNIT, &[1], false).is_err());
    let two = live.freeze().unwrap();
    live.write_at(8 * COPY_UNIT, &[1], false).unwrap();
    assert_eq!(changed(&*two, &*one), units([0, 1, 3, 4, 5, 7]));
    assert_eq!(two.changed_since(&*one).unwrap().changed_bytes(), 6 * COPY_UNIT);
}

#[test]
fn a_lineage_lasts_as_long_as_the_image_lives_or_is_asked_for() {
    let bench = Bench::full(4 * COPY_UNIT, 40);
    let freeze_after = |unit: u64| {
        bench.live.write_at(unit * COPY_UNIT, &[1], false).unwrap();
        bench.live.freeze().unwrap()
    };
    let [a, b, c, d] = [0, 1, 2, 3].map(freeze_after);
    assert_eq!(changed(&*d, &*a), units([1, 2, 3]));
    assert!(b.keep_as_parent());
    assert!(read_all(&*b).is_err(), "nobody reads it any more");
    for image in [&a, &c] {
        image.thaw();
    }
    assert_eq!(d.changed_since(&*a), Err(NoLineage::Forgotten));
    assert_eq!(
        changed(&*d, &*b),
        units([2, 3]),
        "with what was written since the one between"
    );
    assert_eq!(changed(&*c, &*b), None, "a thawed image answers nothing");
    assert_eq!(changed(&*b, &*d), None, "an older one knows nothing of the newer");
    let e = freeze_after(0);
    assert_eq!(changed(&*e, &*b), units([0, 2, 3]));
    b.thaw();
    assert_eq!(changed(&*e, &*b), None);
    assert_eq!(changed(&*e, &*d), units([0]));
    drop(d);
    let f = freeze_after(1);
    assert_eq!(changed(&*f, &*e), units([1]));
    let other = Bench::full(4 * COPY_UNIT, 4);
    let stranger = other.live.freeze().unwrap();
    assert_eq!(stranger.changed_since(&*f), Err(NoLineage::Unrelated));
}

#[test]
fn a_full_copy_area_costs_the_image_and_not_the_lineage() {
    let bench = Bench::full(4 * COPY_UNIT, 1);
    let one = bench.live.freeze().unwrap();
    bench
        .live
        .write_at(0, &vec![1; 3 * COPY_UNIT as usize], false)
        .unwrap();
    assert!(read_all(&*one).is_err());
    assert!(one.keep_as_parent());
    let two = bench.live.freeze().unwrap();
    assert_eq!(changed(&*two, &*one), units([0, 1, 2]));
}

#[test]
fn a_lineage_ends_where_somebody_else_may_have_written() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let freeze = || bench.live.freeze();
    let one = freeze().unwrap();
    assert!(one.keep_as_parent());
    bench.was_open.store(true, Ordering::SeqCst);
    let two = freeze().unwrap();
    assert_eq!(changed(&*two, &*one), None);
    assert!(two.keep_as_parent());
    assert_eq!(changed(&*freeze().unwrap(), &*two), units([]));
    // A freeze that failed may have renewed the guard.
    *bench.standing.lock().unwrap() = Standing::ContentLost("a writer".into());
    assert!(freeze().is_err());
    *bench.standing.lock().unwrap() = Standing::Good;
    assert_eq!(changed(&*freeze().unwrap(), &*two), None);
    for forgotten in [one, two] {
        assert!(!forgotten.can_be_parent() && !forgotten.keep_as_parent());
    }
}

#[test]
fn whether_an_image_can_be_a_parent_is_told_without_a_wait_and_while_it_is_remembered() {
    let bench = Bench::full(2 * COPY_UNIT, 40);
    let one = bench.live.freeze().unwrap();
    assert!(one.can_be_parent());
    assert!(read_all(&*one).is_ok(), "asking ends nothing");
    assert!(one.keep_as_parent() && one.can_be_parent());
    // Not even for a write that lasts: whoever waited for it to end would hold up all later ones.
    let hold = Hold::at(&bench.hooks, between_switch_and_write);
    let two = bench.live.freeze().unwrap();
    let told = thread::scope(|scope| {
        let writer = scope.spawn(|| bench.live.write_at(0, &[1], false).unwrap());
        hold.wait();
        let (done, told) = mpsc::channel();
        let one = &one;
        scope.spawn(move || done.send(one.can_be_parent()));
        let told = told.recv_timeout(Duration::from_secs(10));
        hold.release();
        writer.join().unwrap();
        told
    });
    assert_eq!(told, Ok(true));
    drop(two);
    let later: Vec<_> = std::iter::repeat_with(|| bench.live.freeze().unwrap())
        .take(LINEAGE_MAX)
        .inspect(|image| assert!(image.keep_as_parent()))
        .collect();
    assert!(later.iter().all(|image| image.can_be_parent()));
    assert!(!one.can_be_parent() && !one.keep_as_parent());
}

#[test]
fn a_write_in_flight_belongs_before_the_freeze_that_waits_for_it() {
    for request in REQUESTS {
        let bench = Bench::full(4 * COPY_UNIT, 12);
        let one = bench.live.freeze().unwrap();
        let hold = Hold::at(&bench.hooks, between_switch_and_write);
        let (two, three) = thread::scope(|scope| {
            let writer = scope.spawn(|| request(&bench, COPY_UNIT + 5, COPY_UNIT).unwrap());
            hold.wait();
            let freezer = scope.spawn(|| bench.live.freeze().unwrap());
            thread::sleep(Duration::from_millis(30));
            hold.release();
            writer.join().unwrap();
            let two = freezer.join().unwrap();
            (two, bench.live.freeze().unwrap())
        });
        assert_eq!(changed(&*two, &*one), units([1, 2]));
        assert_eq!(changed(&*three, &*two), units([]));
        assert_eq!(changed(&*three, &*one), units([1, 2]));
    }
}

#[test]
fn a_writer_that_was_held_over_a_freeze_belongs_behind_it() {
    let bench = Bench::holding(3 * COPY_UNIT, 1, Duration::from_secs(100));
    let one = bench.live.freeze().unwrap();
    bench.live.write_at(0, &[1], false).unwrap();
    let (two, content) = thread::scope(|scope| {
        let writer = scope.spawn(|| bench.live.write_at(COPY_UNIT, &[2], false).unwrap());
        while bench.live.copy_area_state().held_writers == 0 {
            thread::yield_now();
        }
        let made = (bench.live.freeze().unwrap(), bench.snapshot());
        assert!(one.keep_as_parent());
        writer.join().unwrap();
        made
    });
    assert!(read_all(&*two).unwrap() == content);
    assert_eq!(changed(&*two, &*one), units([0]));
    assert!(two.keep_as_parent());
    let three = bench.live.freeze().unwrap();
    assert_eq!(changed(&*three, &*two), units([1]));
}

/// Writers and freezes at once. What differs between two images is marked, and what is marked was written by somebody who
/// began before the second freeze had ended and ended after the first had begun.
#[test]
fn under_concurrent_writers_nothing_is_missed_and_nothing_invented() {
    const UNITS: u64 = 64;
    for seed in 1..=4 {
        let bench = Bench::full(UNITS * COPY_UNIT, UNITS * 4);
        let stop = AtomicBool::new(false);
        // Units with the time of their requests: a number before, and one after, which is the last of all while they last.
        let log: Mutex<Vec<(u64, u64, u64)>> = Mutex::default();
        let ticks = std::sync::atomic::AtomicU64::new(0);
        let tick = || ticks.fetch_add(1, Ordering::SeqCst);
        thread::scope(|scope| {
            for writer in 0..3 {
                let (bench, stop, log, tick) = (&bench, &stop, &log, &tick);
                scope.spawn(move || {
                    let mut dice = Dice(seed * 100 + writer + 1);
                    while !stop.load(Ordering::Relaxed) {
                        let unit = dice.roll(UNITS);
                        let mine = {
                            let mut log = log.lock().unwrap();
                            log.push((unit, tick(), u64::MAX));
                            log.len() - 1
                        };
                        let byte = [dice.roll(256) as u8; 16];
                        bench
                            .live
                            .write_at(unit * COPY_UNIT + dice.roll(1000), &byte, false)
                            .unwrap();
                        log.lock().unwrap()[mine].2 = tick();
                    }
                });
            }
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..12 {
                    let from = tick();
                    let one = bench.live.freeze().unwrap();
                    thread::sleep(Duration::from_micros(300));
                    let two = bench.live.freeze().unwrap();
                    let until = tick();
                    let marked = changed(&*two, &*one).unwrap();
                    let (a, b) = (read_all(&*one).unwrap(), read_all(&*two).unwrap());
                    for unit in 0..UNITS {
                        let at = (unit * COPY_UNIT) as usize..((unit + 1) * COPY_UNIT) as usize;
                        assert!(
                            a[at.clone()] == b[at] || marked.contains(&unit),
                            "seed {seed}: {unit} is missed"
                        );
                    }
                    let log = log.lock().unwrap();
                    let possible: BTreeSet<u64> = log
                        .iter()
                        .filter(|(_, begun, ended)| *begun < until && *ended > from)
                        .map(|entry| entry.0)
                        .collect();
                    assert!(
                        marked.is_subset(&possible),
                        "seed {seed}: {:?}",
                        marked.difference(&possible)
                    );
                    one.thaw();
                    two.thaw();
                }
            }));
            stop.store(true, Ordering::Relaxed);
            checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}
