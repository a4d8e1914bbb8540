//! Writers held at every named point of a copy: nothing here depends on luck.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::cow::tests::bench::{Bench, Hold, read_all};
use crate::cow::tests::memory::{Moment, Operation, Side};
use crate::frozen::{FrozenImage, StatusExtent};
use crate::limits::{COPY_RUN, COPY_UNIT};
use crate::range::ByteRange;

pub(super) type Request = fn(&Bench, u64, u64) -> io::Result<()>;

pub(super) const REQUESTS: [Request; 4] = [
    |bench, offset, len| bench.live.write_at(offset, &vec![0x55; len as usize], false),
    |bench, offset, len| bench.live.trim(offset, len, false),
    |bench, offset, len| bench.live.write_zeroes(offset, len, false, true),
    |bench, offset, len| bench.live.write_zeroes(offset, len, true, false),
];

pub(super) fn before_the_old_data_is_read(moment: Moment) -> bool {
    moment.side == Side::Origin && moment.operation == Operation::Read && !moment.done
}

pub(super) fn between_copy_and_switch(moment: Moment) -> bool {
    moment.side == Side::CopyArea && moment.operation == Operation::WriteThrough && moment.done
}

pub(super) fn between_switch_and_write(moment: Moment) -> bool {
    moment.side == Side::Origin && moment.operation == Operation::Write && !moment.done
}

pub(crate) fn after_the_write(moment: Moment) -> bool {
    moment.side == Side::Origin && moment.operation == Operation::Write && moment.done
}

pub(super) const MOMENTS: [fn(Moment) -> bool; 4] = [
    before_the_old_data_is_read,
    between_copy_and_switch,
    between_switch_and_write,
    after_the_write,
];

fn status_of(image: &dyn FrozenImage, unit: u64) -> StatusExtent {
    let range = ByteRange::new(unit * COPY_UNIT, COPY_UNIT).unwrap();
    let extents = image.status(range, usize::MAX).unwrap().extents;
    assert_eq!(extents.len(), 1, "a unit moves as a whole");
    extents[0]
}

#[test]
fn locations_hold_the_frozen_bytes_at_all_times() {
    for request in REQUESTS {
        for moment in MOMENTS {
            let bench = Bench::full(4 * COPY_UNIT, 8);
            let frozen = bench.snapshot();
            let image = bench.live.freeze().unwrap();
            let hold = Hold::at(&bench.hooks, moment);
            thread::scope(|scope| {
                let writer = scope.spawn(|| request(&bench, COPY_UNIT + 100, COPY_UNIT).unwrap());
                hold.wait();
                bench.check_locations(&*image, &frozen, || {});
                // The map is from this moment, the check from after the write.
                let kept = bench.check_locations(&*image, &frozen, || {
                    hold.release();
                    writer.join().unwrap();
                });
                assert!(kept >= 2 * COPY_UNIT, "units that nobody wrote stay direct");
            });
            assert_eq!(bench.check_locations(&*image, &frozen, || {}), 4 * COPY_UNIT);
            assert!(read_all(&*image).unwrap() == frozen);
            assert!(bench.snapshot() != frozen);
        }
    }
}

#[test]
fn the_generation_rises_after_the_copy_and_before_the_origin_changes() {
    for request in REQUESTS {
        let bench = Bench::full(2 * COPY_UNIT, 8);
        let image = bench.live.freeze().unwrap();
        let first = status_of(&*image, 0);
        let stays = |bench: &Bench, moment: fn(Moment) -> bool| {
            let hold = Hold::at(&bench.hooks, moment);
            thread::scope(|scope| {
                let writer = scope.spawn(|| request(bench, 0, 512).unwrap());
                hold.wait();
                let seen = status_of(&*image, 0);
                hold.release();
                writer.join().unwrap();
                seen
            })
        };
        assert_eq!(
            stays(&bench, between_copy_and_switch),
            first,
            "until the switch the old mapping stands"
        );
        let moved = status_of(&*image, 0);
        assert_ne!(moved.generation, first.generation);
        assert_ne!(moved.place, first.place);
        assert_eq!(
            stays(&bench, between_switch_and_write),
            moved,
            "a unit moves once"
        );
        assert_eq!(
            status_of(&*image, 1),
            StatusExtent {
                range: status_of(&*image, 1).range,
                place: status_of(&*image, 1).place,
                ..first
            }
        );

        let bench = Bench::full(2 * COPY_UNIT, 8);
        let image = bench.live.freeze().unwrap();
        let (first, frozen) = (status_of(&*image, 0), bench.snapshot());
        let hold = Hold::at(&bench.hooks, between_switch_and_write);
        thread::scope(|scope| {
            let writer = scope.spawn(|| request(&bench, 0, 512).unwrap());
            hold.wait();
            assert!(bench.snapshot() == frozen, "the origin has not changed yet");
            assert_ne!(
                status_of(&*image, 0).generation,
                first.generation,
                "but everybody knows that it will"
            );
            hold.release();
            writer.join().unwrap();
        });
    }
}

#[test]
fn a_read_of_the_frozen_image_that_meets_a_writer_returns_frozen_bytes() {
    let bench = Arc::new(Bench::full(4 * COPY_UNIT, 8));
    let frozen = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    // The reader has looked at the map, and is held before its bytes are copied: the writer comes and goes meanwhile.
    let hold = Hold::at(&bench.hooks, before_the_old_data_is_read);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&*image).unwrap());
        hold.wait();
        bench.live.write_at(COPY_UNIT - 10, &[0x55; 20], false).unwrap();
        bench.live.trim(3 * COPY_UNIT, 4096, false).unwrap();
        hold.release();
        assert!(reader.join().unwrap() == frozen);
    });
}

#[test]
fn a_read_that_ends_after_the_thaw_says_gone() {
    let bench = Bench::full(COPY_UNIT, 8);
    let image = bench.live.freeze().unwrap();
    let hold = Hold::at(&bench.hooks, before_the_old_data_is_read);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&*image));
        hold.wait();
        image.thaw();
        bench.live.write_at(0, &[0x55; 20], false).unwrap();
        hold.release();
        assert!(matches!(
            reader.join().unwrap(),
            Err(crate::frozen::FrozenError::Gone(_))
        ));
    });
}

#[test]
fn two_writers_of_a_unit_copy_it_once_and_both_wait() {
    let bench = Bench::full(4 * COPY_UNIT, 8);
    let frozen = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    let writes = AtomicU64::new(0);
    let hold = Hold::at(&bench.hooks, between_copy_and_switch);
    thread::scope(|scope| {
        let write = |offset: u64| {
            bench.live.write_at(offset, &[0x55; 100], false).unwrap();
            writes.fetch_add(1, Ordering::SeqCst);
        };
        let first = scope.spawn(move || write(0));
        hold.wait();
        let second = scope.spawn(move || write(200));
        // Another unit is not held up by the first one.
        write(2 * COPY_UNIT);
        // The second one has every chance to overtake, and must not.
        thread::sleep(Duration::from_millis(50));
        assert_eq!(writes.load(Ordering::SeqCst), 1);
        assert_eq!(
            bench.snapshot()[..COPY_UNIT as usize],
            frozen[..COPY_UNIT as usize]
        );
        hold.release();
        first.join().unwrap();
        second.join().unwrap();
    });
    assert_eq!(bench.live.copy_area_use().used, 2 * COPY_UNIT);
    assert!(read_all(&*image).unwrap() == frozen);
}

#[test]
fn a_long_write_copies_in_runs_that_share_a_generation() {
    const RUN: u64 = COPY_RUN / COPY_UNIT;
    let units = RUN + 3;
    let bench = Bench::full(units * COPY_UNIT, units);
    let frozen = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    bench
        .live
        .write_zeroes(0, units * COPY_UNIT, false, false)
        .unwrap();
    let whole = ByteRange::new(0, units * COPY_UNIT).unwrap();
    let extents = image.status(whole, usize::MAX).unwrap().extents;
    let lens: Vec<u64> = extents.iter().map(|e| e.range.len() / COPY_UNIT).collect();
    assert_eq!(lens, [RUN, 3]);
    assert_eq!(image.status(whole, 1).unwrap().extents, extents[..1]);
    assert!(read_all(&*image).unwrap() == frozen);
}

fn window_of_a_freeze_during_a_write() -> Duration {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let hold = Hold::at(&bench.hooks, between_switch_and_write);
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| bench.live.write_at(0, &[0x55; 10], false).unwrap());
        hold.wait();
        let freezer = scope.spawn(|| {
            let image = bench.live.freeze().unwrap();
            done.fetch_add(1, Ordering::SeqCst);
            image
        });
        thread::sleep(Duration::from_millis(50));
        assert_eq!(done.load(Ordering::SeqCst), 0, "a write is in flight");
        hold.release();
        writer.join().unwrap();
        let image = freezer.join().unwrap();
        assert_eq!(read_all(&*image).unwrap()[..10], [0x55; 10]);
    });
    bench.live.last_freeze_window().unwrap()
}

#[test]
fn a_freeze_waits_for_writes_in_flight_and_holds_new_ones() {
    // What it takes to stop them all is told. How late a thread begins is up to the machine.
    let waited = (0..20).any(|_| window_of_a_freeze_during_a_write() >= Duration::from_millis(40));
    assert!(waited, "the wait is part of the window");
}

#[test]
fn a_thaw_waits_for_copies_in_flight() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let image = bench.live.freeze().unwrap();
    let hold = Hold::at(&bench.hooks, |moment| {
        moment.side == Side::CopyArea && moment.operation == Operation::WriteThrough && !moment.done
    });
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| bench.live.write_at(0, &[0x55; 10], false).unwrap());
        hold.wait();
        let thawer = scope.spawn(|| {
            image.thaw();
            done.fetch_add(1, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(50));
        assert_eq!(done.load(Ordering::SeqCst), 0, "a write is in flight");
        hold.release();
        writer.join().unwrap();
        thawer.join().unwrap();
    });
}
