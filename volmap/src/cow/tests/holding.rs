//! Writers that wait for room, as was asked for: until a thaw, or until they have waited long enough.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cow::tests::bench::{Bench, read_all};
use crate::cow::tests::memory::{Operation, Side};
use crate::cow::{Fullness, OnFull};
use crate::frozen::{FrozenError, FrozenImage};
use crate::limits::COPY_UNIT;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(100);
/// Time in which somebody who must not go on has every chance to.
const CHANCE: Duration = Duration::from_millis(50);

fn write(bench: &Bench, unit: u64, byte: u8) {
    bench.live.write_at(unit * COPY_UNIT, &[byte; 10], false).unwrap();
}

fn await_held(bench: &Bench, writers: usize) {
    let begun = Instant::now();
    while bench.live.copy_area_state().held_writers != writers {
        assert!(begun.elapsed() < LONG, "no {writers} writers are held");
        thread::yield_now();
    }
}

fn is_gone(image: &dyn FrozenImage) -> bool {
    matches!(read_all(image), Err(FrozenError::Gone(_)))
}

#[test]
fn a_full_copy_area_holds_the_writer_until_a_thaw() {
    let bench = Bench::holding(4 * COPY_UNIT, 1, LONG);
    let one = bench.live.freeze().unwrap();
    let content = bench.snapshot();
    write(&bench, 0, 1);
    let state = bench.live.copy_area_state();
    assert_eq!(
        (state.fullness, state.on_full),
        (Fullness::Full, OnFull::Hold(LONG))
    );
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = (1..3)
            .map(|unit| {
                let (bench, done) = (&bench, &done);
                scope.spawn(move || {
                    write(bench, unit, 2);
                    done.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        await_held(&bench, 2);
        thread::sleep(CHANCE);
        assert_eq!(done.load(Ordering::SeqCst), 0);
        assert_eq!(
            bench.snapshot()[COPY_UNIT as usize..],
            content[COPY_UNIT as usize..]
        );
        // Nobody else is held up: not who needs no copy, nor a reader, a flush or a freeze.
        write(&bench, 0, 3);
        assert!(read_all(&*one).unwrap() == content);
        bench.live.flush().unwrap();
        let two = bench.live.freeze().unwrap();
        let later = bench.snapshot();
        // The new image needs a copy of what the held writers are at: they wait for both.
        assert_eq!(bench.live.copy_area_state().held_writers, 2);
        one.thaw();
        let begun = Instant::now();
        while done.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < LONG);
            thread::yield_now();
        }
        assert!(
            read_all(&*two).unwrap() == later,
            "who went on has kept the old data first"
        );
        two.thaw();
        for writer in writers {
            writer.join().unwrap();
        }
    });
    assert_eq!(bench.live.copy_area_state().held_writers, 0);
    assert_eq!(bench.snapshot()[COPY_UNIT as usize], 2);
}

#[test]
fn who_has_waited_long_enough_goes_on_and_the_frozen_image_ends() {
    let limit = Duration::from_millis(300);
    let bench = Bench::holding(4 * COPY_UNIT, 1, limit);
    let image = bench.live.freeze().unwrap();
    write(&bench, 0, 1);
    let begun = Instant::now();
    write(&bench, 1, 2);
    assert!(begun.elapsed() >= limit);
    assert!(begun.elapsed() < LONG);
    assert!(is_gone(&*image));
    assert_eq!(bench.live.copy_area_state().held_writers, 0);
    // The next image begins with all the room there is, and the next writer with all the time.
    let next = bench.live.freeze().unwrap();
    let content = bench.snapshot();
    write(&bench, 0, 3);
    assert!(read_all(&*next).unwrap() == content);
}

#[test]
fn an_error_that_passes_within_the_time_costs_nothing() {
    let bench = Bench::holding(2 * COPY_UNIT, 4, LONG);
    let image = bench.live.freeze().unwrap();
    let content = bench.snapshot();
    bench.hooks.set(|moment| match (moment.operation, moment.done) {
        (Operation::WriteThrough, false) => Err(io::Error::other("injected")),
        _ => Ok(()),
    });
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&bench, 0, 1));
        await_held(&bench, 1);
        assert!(bench.snapshot() == content);
        bench.hooks.set(|_| Ok(()));
        writer.join().unwrap();
    });
    assert!(read_all(&*image).unwrap() == content);
    assert_eq!(bench.live.copy_area_use().used, COPY_UNIT);
}

#[test]
fn old_data_that_cannot_be_read_is_not_waited_for() {
    let bench = Bench::holding(2 * COPY_UNIT, 4, LONG);
    let image = bench.live.freeze().unwrap();
    bench.hooks.set(|moment| match (moment.side, moment.operation) {
        (Side::Origin, Operation::Read) => Err(io::Error::other("injected")),
        _ => Ok(()),
    });
    let begun = Instant::now();
    write(&bench, 0, 1);
    assert!(begun.elapsed() < LONG / 2);
    bench.hooks.set(|_| Ok(()));
    assert!(is_gone(&*image));
}

#[test]
fn the_end_of_an_image_that_holds_nothing_lets_its_writers_go_on() {
    let bench = Bench::holding(2 * COPY_UNIT, 1, LONG);
    let one = bench.live.freeze().unwrap();
    write(&bench, 0, 1);
    let two = bench.live.freeze().unwrap();
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        // Only the second image needs unit 0, and only the first has slots.
        let writer = scope.spawn(|| {
            write(&bench, 0, 2);
            finished.store(true, Ordering::SeqCst);
        });
        await_held(&bench, 1);
        thread::sleep(CHANCE);
        assert!(!finished.load(Ordering::SeqCst));
        two.thaw();
        writer.join().unwrap();
    });
    assert!(read_all(&*one).is_ok());
}
