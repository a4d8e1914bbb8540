//! Disks that hang: whoever freezes is told so in time, and nobody else's disk hangs with them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cow::tests::bench::{Bench, Hold, read_all};
use crate::cow::tests::memory::{Moment, Operation};
use crate::cow::tests::races::after_the_write;
use crate::cow::{CowError, HeldOrigins};
use crate::frozen::FrozenImage;
use crate::limits::COPY_UNIT;

/// A deadline that passes, and that a disk which does not hang meets now and then on a busy machine.
const SHORT: Duration = Duration::from_millis(200);
/// Far beyond what a busy machine takes, and below the patience of a [`Hold`]: who waits for the disk itself comes later.
const SOON: Duration = Duration::from_secs(20);

fn impatient() -> Bench {
    Bench::impatient(2 * COPY_UNIT, 8, SHORT)
}

/// Freezes until it is frozen.
fn frozen(bench: &Bench) -> Arc<dyn FrozenImage> {
    let begun = Instant::now();
    loop {
        match bench.live.freeze() {
            Ok(image) => return image,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
    }
}

/// Why it is not frozen, which is told in time.
fn refused(bench: &Bench) -> CowError {
    let begun = Instant::now();
    let refused = bench.live.freeze().map(drop).unwrap_err();
    assert!(begun.elapsed() < SOON, "{refused}");
    refused
}

fn is(operation: Operation) -> impl Fn(Moment) -> bool + Send + Sync + 'static {
    move |moment| moment.operation == operation && !moment.done
}

fn write(bench: &Bench) {
    bench.live.write_at(0, &[1; 512], false).unwrap();
}

/// Nothing is frozen, nothing is kept for anybody, and it can be frozen.
fn assert_free(bench: &Bench) {
    write(bench);
    assert!(!bench.live.living().is_frozen());
    assert_eq!(bench.live.copy_area_use().used, 0);
    let image = frozen(bench);
    let bytes = bench.snapshot();
    write(bench);
    assert!(read_all(&*image).unwrap() == bytes);
}

#[test]
fn a_disk_that_hangs_in_a_sync_ends_its_own_freezes_in_time_and_no_others() {
    let (dead, well) = (impatient(), impatient());
    let earlier = frozen(&dead);
    let hang = Hold::at(&dead.hooks, is(Operation::Sync));
    for _ in 0..3 {
        assert!(matches!(refused(&dead), CowError::NotReady(SHORT)));
        let ready = dead.live.make_ready().unwrap_err();
        assert!(matches!(ready, CowError::NotReady(SHORT)), "{ready}");
        // What they left behind holds no writer.
        write(&dead);
        frozen(&well).thaw();
    }
    hang.wait();
    earlier.thaw();
    drop(earlier);
    // The bench, and the one that hangs: those who came later have given up, or each try would leave a thread behind.
    let begun = Instant::now();
    while Arc::strong_count(&dead.live) > 2 {
        assert!(begun.elapsed() < SOON, "{} wait", Arc::strong_count(&dead.live));
        thread::sleep(Duration::from_millis(5));
    }
    hang.release();
    assert_free(&dead);
    assert_free(&well);
}

#[test]
fn one_that_hangs_in_a_sync_costs_a_set_that_it_is_in_and_no_part_is_left() {
    let (dead, well) = (impatient(), impatient());
    let origins = [&well, &dead].map(|bench| Arc::clone(&bench.live));
    let hang = Hold::at(&dead.hooks, is(Operation::Sync));
    let failed = HeldOrigins::hold(&origins, SHORT).err().unwrap();
    assert!(
        failed.nth == 1 && matches!(failed.why, CowError::NotReady(SHORT)),
        "{failed:?}"
    );
    hang.wait();
    assert_free(&well);
    hang.release();
    assert_free(&dead);
}

#[test]
fn a_disk_that_hangs_behind_the_gate_ends_the_freeze_at_its_deadline() {
    for hangs_in in [Operation::Sync, Operation::Survey] {
        let (dead, well) = (impatient(), impatient());
        let origins = [&well, &dead].map(|bench| Arc::clone(&bench.live));
        let mut held = HeldOrigins::hold(&origins, SHORT).unwrap();
        let hang = Hold::at(&dead.hooks, is(hangs_in));
        let begun = Instant::now();
        let failed = held.take().unwrap_err();
        assert!(begun.elapsed() < SOON);
        drop(held);
        assert!(matches!(failed.why, CowError::HeldTooLong(SHORT)), "{failed:?}");
        hang.wait();
        write(&dead);
        assert_free(&well);
        match (hangs_in, refused(&dead)) {
            // Its turn to sync does not come, or the freeze that hangs has the survey.
            (Operation::Sync, CowError::NotReady(SHORT)) => {}
            (Operation::Survey, CowError::AnotherFreeze(SHORT)) => {}
            (_, other) => panic!("{hangs_in:?}: {other}"),
        }
        hang.release();
        assert_free(&dead);
    }
}

#[test]
fn a_copy_area_that_takes_long_to_settle_holds_no_writer() {
    let bench = impatient();
    let slow = Hold::at(&bench.hooks, is(Operation::Settle));
    assert!(matches!(refused(&bench), CowError::NotReady(SHORT)));
    slow.wait();
    write(&bench);
    // It goes on, and is done once and not twice at a time.
    assert!(matches!(refused(&bench), CowError::AnotherFreeze(SHORT)));
    slow.release();
    assert_free(&bench);
}

/// What lies in the copy area is somebody's then, and a guard of his would be renewed.
#[test]
fn nothing_is_settled_ahead_while_a_frozen_image_stands() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let image = bench.live.freeze().unwrap();
    bench.hooks.set(|moment| {
        assert!(moment.operation != Operation::Settle, "settled under an image");
        Ok(())
    });
    let another = bench.live.freeze().unwrap();
    bench.hooks.set(|_| Ok(()));
    drop((image, another));
    assert_free(&bench);
}

#[test]
fn a_write_that_does_not_end_keeps_no_thaw() {
    let bench = impatient();
    let image = frozen(&bench);
    let kept = frozen(&bench);
    let hold = Hold::at(&bench.hooks, after_the_write);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&bench));
        hold.wait();
        let begun = Instant::now();
        image.thaw();
        assert!(begun.elapsed() < SOON);
        assert!(read_all(&*image).is_err());
        assert!(kept.keep_as_parent(), "what changed since is remembered");
        assert_eq!(bench.live.copy_area_use().used, 0);
        hold.release();
        writer.join().unwrap();
    });
    let next = frozen(&bench);
    assert!(next.changed_since(&*kept).is_ok());
    assert_eq!(
        bench.live.living().images.len(),
        1,
        "the thawed are gone with the next freeze"
    );
}

#[test]
fn a_panic_on_another_thread_is_the_callers() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    bench.hooks.set(|moment| {
        assert!(moment.operation != Operation::Sync, "a test");
        Ok(())
    });
    assert!(catch_unwind(AssertUnwindSafe(|| bench.live.freeze().map(drop))).is_err());
    bench.hooks.set(|_| Ok(()));
    assert_free(&bench);
}
