//! Origins that are frozen at one instant, and what becomes of their writers when that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::cow::tests::bench::{Bench, Hold, read_all};
use crate::cow::tests::memory::{Moment, Operation};
use crate::cow::tests::races::after_the_write;
use crate::cow::{CopyOptions, CowError, HeldOrigins, OneFailed, Origin};
use crate::frozen::FrozenImage;
use crate::limits::{COPY_UNIT, WINDOW_MAX};

/// Far beyond what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A deadline that passes.
const SHORT: Duration = Duration::from_millis(100);

fn benches<const N: usize>() -> [Bench; N] {
    std::array::from_fn(|_| Bench::full(2 * COPY_UNIT, 8))
}

fn origins(benches: &[Bench]) -> Vec<Arc<Origin>> {
    benches.iter().map(|bench| Arc::clone(&bench.live)).collect()
}

fn freeze(benches: &[Bench]) -> Result<Vec<Arc<dyn FrozenImage>>, OneFailed> {
    let mut held = HeldOrigins::hold(&origins(benches), PATIENCE)?;
    held.take()?;
    held.release(SystemTime::now())
}

/// Nobody holds writers.
fn write(bench: &Bench) {
    let live = Arc::clone(&bench.live);
    let (done, finished) = mpsc::channel();
    thread::spawn(move || done.send(live.write_at(0, &[1; 512], false)));
    finished
        .recv_timeout(PATIENCE)
        .expect("its writers go on")
        .unwrap();
}

/// No writer waits, and no frozen image is left.
fn assert_free(benches: &[Bench]) {
    for bench in benches {
        write(bench);
        assert!(bench.live.living().images.is_empty());
    }
}

fn is_sync(moment: Moment) -> bool {
    moment.operation == Operation::Sync
}

fn is_survey(moment: Moment) -> bool {
    moment.operation == Operation::Survey && moment.done
}

/// A writer for every two origins and either order, that counts in the one and then in the other.
#[test]
fn what_is_written_to_one_origin_after_another_is_of_one_instant() {
    let benches = benches::<3>();
    for bench in &benches {
        bench.origin.poke(0, &[0; 4096]);
        // One that is taken while others are not held gives writers all the time.
        bench.hooks.set(|moment| {
            if is_sync(moment) {
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
    }
    let pairs = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];
    let cell = |nth: usize| nth * 512;
    let go_on = AtomicBool::new(true);
    let mut last = [0; 6];
    thread::scope(|scope| {
        for (nth, (first, then)) in pairs.into_iter().enumerate() {
            let (benches, go_on) = (&benches, &go_on);
            scope.spawn(move || {
                for count in (1_u64..).take_while(|_| go_on.load(Ordering::Relaxed)) {
                    for origin in [first, then] {
                        let live = &benches[origin].live;
                        live.write_at(cell(nth) as u64, &count.to_le_bytes(), false)
                            .unwrap();
                    }
                }
            });
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for round in 0..12 {
                let images = freeze(&benches).unwrap();
                let bytes: Vec<_> = images.iter().map(|image| read_all(&**image).unwrap()).collect();
                let count = |origin: usize, nth: usize| {
                    u64::from_le_bytes(bytes[origin][cell(nth)..cell(nth) + 8].try_into().unwrap())
                };
                for (nth, (first, then)) in pairs.into_iter().enumerate() {
                    let (before, after) = (count(first, nth), count(then, nth));
                    assert!(
                        after <= before && before <= after + 1,
                        "round {round}, {first} before {then}: {before} {after}"
                    );
                    last[nth] = after;
                }
                let instants: Vec<_> = images.iter().map(|image| image.description().frozen_at).collect();
                assert!(instants.iter().all(|at| *at == instants[0]));
            }
        }));
        go_on.store(false, Ordering::Relaxed);
        outcome.unwrap();
    });
    assert!(last.iter().all(|count| *count > 0), "{last:?}");
}

#[test]
fn a_write_that_does_not_end_costs_the_freeze_and_nobodys_time() {
    let benches = benches::<3>();
    for stuck in 0..benches.len() {
        let bench = &benches[stuck];
        let hold = Hold::at(&bench.hooks, after_the_write);
        thread::scope(|scope| {
            let writer = scope.spawn(|| bench.live.write_at(0, &[1; 512], false).unwrap());
            hold.wait();
            let failed = HeldOrigins::hold(&origins(&benches), SHORT).err().unwrap();
            assert_eq!(failed.nth, stuck);
            assert!(matches!(failed.why, CowError::NotStill(SHORT)), "{failed:?}");
            // Those of the same origin, too.
            assert_free(&benches);
            hold.release();
            writer.join().unwrap();
        });
    }
    freeze(&benches).unwrap();
}

#[test]
fn gates_are_opened_at_the_deadline_whatever_hangs() {
    let benches = benches::<2>();
    let mut held = HeldOrigins::hold(&origins(&benches), SHORT).unwrap();
    let hang = Hold::at(&benches[0].hooks, is_sync);
    thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let failed = held.take().unwrap_err();
            drop(held);
            failed
        });
        hang.wait();
        benches.iter().for_each(write);
        hang.release();
        let failed = taker.join().unwrap();
        assert!(
            failed.nth == 0 && matches!(failed.why, CowError::HeldTooLong(SHORT)),
            "{failed:?}"
        );
    });
    assert_free(&benches);
}

#[test]
fn a_gate_that_was_opened_before_the_end_costs_all() {
    let benches = benches::<2>();
    let mut held = HeldOrigins::hold(&origins(&benches), SHORT).unwrap();
    // On a machine that stands still for so long they are not even taken.
    let taken = held.take();
    write(&benches[1]);
    let failed = match taken {
        Ok(()) => held.release(SystemTime::now()).err().unwrap(),
        Err(failed) => failed,
    };
    assert!(matches!(failed.why, CowError::HeldTooLong(SHORT)), "{failed:?}");
    assert_free(&benches);
}

#[test]
fn an_origin_that_fails_lets_the_others_go() {
    let benches = benches::<3>();
    let mut held = HeldOrigins::hold(&origins(&benches), PATIENCE).unwrap();
    benches[1].hooks.set(|moment| match is_sync(moment) {
        true => Err(std::io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    let failed = held.take().unwrap_err();
    assert!(
        failed.nth == 1 && matches!(failed.why, CowError::Io(_)),
        "{failed:?}"
    );
    drop(held);
    assert_free(&benches);
    let failed = freeze(&benches).err().unwrap();
    assert!(
        failed.nth == 1 && matches!(failed.why, CowError::SyncFailed(_)),
        "{failed:?}"
    );
    assert_free(&benches);
}

#[test]
fn a_panic_lets_all_go() {
    let benches = benches::<2>();
    let mut held = HeldOrigins::hold(&origins(&benches), PATIENCE).unwrap();
    benches[0].hooks.set(|moment| {
        assert!(!is_sync(moment), "a test");
        Ok(())
    });
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        held.take().unwrap();
    }));
    assert!(panicked.is_err());
    benches[0].hooks.set(|_| Ok(()));
    assert_free(&benches);
}

/// What was taken of a set that cannot be any more would fill its copy area for as long as the other hangs.
#[test]
fn what_was_taken_is_no_more_when_writers_go_on() {
    let benches = benches::<2>();
    let mut held = HeldOrigins::hold(&origins(&benches), PATIENCE).unwrap();
    let gates = Arc::clone(&held.gates);
    let hang = Hold::at(&benches[1].hooks, is_sync);
    thread::scope(|scope| {
        let taker = scope.spawn(move || held.take().unwrap_err());
        hang.wait();
        while gates.behind(0, |gate| gate.living.images.is_empty()).unwrap() {
            thread::sleep(Duration::from_millis(1));
        }
        // As at the deadline.
        assert!(gates.give_up());
        write(&benches[0]);
        assert_eq!(benches[0].live.copy_area_use().used, 0);
        assert!(benches[0].live.living().images.is_empty());
        // Nor does it keep the other from being frozen by itself.
        benches[0].live.freeze().unwrap();
        hang.release();
        let failed = taker.join().unwrap();
        assert!(failed.nth == 1 && matches!(failed.why, CowError::HeldTooLong(_)));
    });
    assert_free(&benches);
}

#[test]
fn a_freeze_of_one_origin_holds_writers_until_its_deadline_only() {
    assert_eq!(CopyOptions::default().window_max, WINDOW_MAX);
    let bench = Bench::hurried(2 * COPY_UNIT, 8, SHORT);
    let hold = Hold::at(&bench.hooks, after_the_write);
    thread::scope(|scope| {
        let writer = scope.spawn(|| bench.live.write_at(0, &[1; 512], false).unwrap());
        hold.wait();
        let failed = bench.live.freeze().map(drop).unwrap_err();
        assert!(matches!(failed, CowError::NotStill(SHORT)), "{failed:?}");
        assert_free(std::slice::from_ref(&bench));
        hold.release();
        writer.join().unwrap();
    });
}

#[test]
fn writers_go_on_while_a_freeze_waits_for_another() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let sole = std::slice::from_ref(&bench.live);
    let mut held = HeldOrigins::hold(sole, PATIENCE).unwrap();
    let gates = Arc::clone(&held.gates);
    let hang = Hold::at(&bench.hooks, is_survey);
    thread::scope(|scope| {
        let first = scope.spawn(move || held.take().unwrap_err());
        hang.wait();
        // As at the deadline.
        assert!(gates.give_up());
        let failed = HeldOrigins::hold(sole, SHORT).err().unwrap();
        assert!(matches!(failed.why, CowError::AnotherFreeze(SHORT)), "{failed:?}");
        let next = scope.spawn(|| HeldOrigins::hold(sole, PATIENCE).map(drop));
        // It is there by now, as a rule.
        thread::sleep(SHORT);
        write(&bench);
        assert!(!next.is_finished());
        hang.release();
        assert!(matches!(first.join().unwrap().why, CowError::HeldTooLong(_)));
        next.join().unwrap().unwrap();
    });
    assert_free(&[bench]);
}

#[test]
fn nobody_watches_over_no_writers() {
    let mut held = HeldOrigins::hold(&[], Duration::ZERO).unwrap();
    thread::sleep(SHORT);
    held.take().unwrap();
    assert!(held.release(SystemTime::now()).unwrap().is_empty());
}

/// A survey renews a guard where no frozen image stands. One that goes on when its gate was opened must not have another freeze make an image
/// that relies on the guard meanwhile, and what it found out about the time before must not be lost with it.
#[test]
fn nobody_freezes_beside_a_survey_that_goes_on_behind_an_open_gate() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let parent = bench.live.freeze().unwrap();
    assert!(parent.keep_as_parent());
    bench.was_open.store(true, Ordering::SeqCst);

    let mut held = HeldOrigins::hold(std::slice::from_ref(&bench.live), PATIENCE).unwrap();
    let gates = Arc::clone(&held.gates);
    let hang = Hold::at(&bench.hooks, is_survey);
    thread::scope(|scope| {
        let late = scope.spawn(move || held.take().unwrap_err());
        hang.wait();
        // As at the deadline.
        assert!(gates.give_up());
        write(&bench);
        let next = scope.spawn(|| bench.live.freeze().unwrap());
        thread::sleep(SHORT);
        let overtaken = next.is_finished();
        hang.release();
        let failed = late.join().unwrap();
        assert!(matches!(failed.why, CowError::HeldTooLong(_)), "{failed:?}");
        assert!(!overtaken, "it made an image while another survey was under way");
        let next = next.join().unwrap();
        assert!(read_all(&*next).unwrap() == bench.snapshot());
        assert!(next.changed_since(&*parent).is_err(), "somebody had it open");
    });
}
