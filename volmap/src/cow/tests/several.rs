//! Several frozen images of one origin: each stands for itself, and one copy serves all that need it.

use std::thread;

use crate::cow::tests::bench::{Bench, Hold, original, read_all};
use crate::cow::tests::memory::{Operation, Side};
use crate::cow::tests::races::{MOMENTS, REQUESTS, between_switch_and_write};
use crate::frozen::{FrozenError, FrozenImage};
use crate::limits::COPY_UNIT;
use crate::range::ByteRange;
use crate::storage::Standing;

fn used(bench: &Bench) -> u64 {
    bench.live.copy_area_use().used / COPY_UNIT
}

fn write(bench: &Bench, unit: u64, byte: u8) {
    bench
        .live
        .write_at(unit * COPY_UNIT + 9, &[byte; 40], false)
        .unwrap();
}

fn is_gone(image: &dyn FrozenImage) -> bool {
    matches!(read_all(image), Err(FrozenError::Gone(_)))
}

#[test]
fn one_copy_serves_all_that_need_it_until_the_last_has_ended() {
    let bench = Bench::full(6 * COPY_UNIT, 8);
    let mut frozen = Vec::new();
    for round in 0..3_u8 {
        frozen.push((bench.live.freeze().unwrap(), bench.snapshot()));
        write(&bench, round.into(), round + 1);
    }
    // Unit 0 for the first; unit 1 for the first two, unit 2 for all.
    assert_eq!(used(&bench), 3);
    write(&bench, 0, 7);
    // Again, now for the other two.
    assert_eq!(used(&bench), 4);
    write(&bench, 0, 8);
    assert_eq!(used(&bench), 4);
    for (image, content) in &frozen {
        assert!(read_all(&**image).unwrap() == *content);
        assert_eq!(bench.check_locations(&**image, content, || {}), 6 * COPY_UNIT);
    }
    frozen[1].0.thaw();
    assert_eq!(used(&bench), 4, "the others need all that it had");
    frozen[2].0.thaw();
    assert_eq!(used(&bench), 3, "the second copy of unit 0 was theirs alone");
    let (image, content) = &frozen[0];
    assert!(read_all(&**image).unwrap() == *content);
    image.thaw();
    assert_eq!(used(&bench), 0);
}

#[test]
fn whichever_goes_first_the_others_stay() {
    for first in 0..3 {
        for second in 0..3 {
            let bench = Bench::full(4 * COPY_UNIT, 12);
            let mut frozen: Vec<_> = (0..3_u8)
                .map(|round| {
                    let made = (bench.live.freeze().unwrap(), bench.snapshot());
                    bench
                        .live
                        .write_at(
                            u64::from(round) * COPY_UNIT - u64::from(round),
                            &[round + 1; 99],
                            false,
                        )
                        .unwrap();
                    made
                })
                .collect();
            for (round, gone) in [first, second].into_iter().enumerate() {
                drop(frozen.remove(gone % frozen.len()));
                // What was freed is used again at once.
                for unit in 0..4 {
                    write(&bench, unit, 50 + round as u8);
                }
                bench.live.trim(0, 4 * COPY_UNIT, false).unwrap();
                for (image, content) in &frozen {
                    assert!(read_all(&**image).unwrap() == *content);
                    assert_eq!(bench.check_locations(&**image, content, || {}), 4 * COPY_UNIT);
                }
            }
            frozen.clear();
            assert_eq!(used(&bench), 0);
        }
    }
}

#[test]
fn zeroes_of_one_freeze_are_data_of_the_next() {
    let bench = Bench::new(2 * COPY_UNIT, 8, &[]);
    let first = bench.live.freeze().unwrap();
    write(&bench, 0, 5);
    assert_eq!(used(&bench), 0, "zeroes need no copy");
    let second = bench.live.freeze().unwrap();
    let content = bench.snapshot();
    bench.live.trim(0, 2 * COPY_UNIT, false).unwrap();
    assert_eq!(used(&bench), 1);
    assert!(read_all(&*first).unwrap().iter().all(|&byte| byte == 0));
    assert!(read_all(&*second).unwrap() == content);
    first.thaw();
    assert_eq!(used(&bench), 1);
    assert_eq!(bench.check_locations(&*second, &content, || {}), 2 * COPY_UNIT);
}

#[test]
fn locations_of_all_images_hold_their_bytes_at_every_step_of_a_copy() {
    for request in REQUESTS {
        for moment in MOMENTS {
            let bench = Bench::full(4 * COPY_UNIT, 12);
            let frozen: Vec<_> = (0..3)
                .map(|round| {
                    let made = (bench.live.freeze().unwrap(), bench.snapshot());
                    if round == 0 {
                        write(&bench, 1, 77);
                    }
                    made
                })
                .collect();
            let hold = Hold::at(&bench.hooks, moment);
            thread::scope(|scope| {
                let writer = scope.spawn(|| request(&bench, COPY_UNIT + 100, COPY_UNIT).unwrap());
                hold.wait();
                for (image, content) in &frozen {
                    bench.check_locations(&**image, content, || {});
                }
                let (image, content) = &frozen[2];
                let kept = bench.check_locations(&**image, content, || {
                    hold.release();
                    writer.join().unwrap();
                });
                assert!(kept >= 2 * COPY_UNIT, "units that nobody wrote stay direct");
            });
            for (image, content) in &frozen {
                assert_eq!(bench.check_locations(&**image, content, || {}), 4 * COPY_UNIT);
                assert!(read_all(&**image).unwrap() == *content);
            }
        }
    }
}

#[test]
fn every_image_has_switched_by_a_generation_of_its_own_before_the_origin_changes() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let images = [(); 3].map(|()| bench.live.freeze().unwrap());
    let unit = ByteRange::new(0, COPY_UNIT).unwrap();
    let status = |image: &dyn FrozenImage| image.status(unit, 2).unwrap().extents[0];
    let before = images.each_ref().map(|image| status(&**image));
    let hold = Hold::at(&bench.hooks, between_switch_and_write);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&bench, 0, 1));
        hold.wait();
        let after = images.each_ref().map(|image| status(&**image));
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(before.generation, after.generation);
            assert_ne!(before.place, after.place);
        }
        let mut generations: Vec<_> = before
            .iter()
            .chain(&after)
            .map(|s| s.generation.to_wire())
            .collect();
        generations.sort_unstable();
        generations.dedup();
        assert_eq!(generations.len(), 6);
        assert!(after.iter().all(|s| s.place == after[0].place), "one copy");
        hold.release();
        writer.join().unwrap();
    });
}

#[test]
fn a_thaw_in_the_middle_of_a_copy_leaves_it_to_the_others() {
    for moment in MOMENTS {
        let bench = Bench::full(2 * COPY_UNIT, 2);
        let [one, two] = [(); 2].map(|()| bench.live.freeze().unwrap());
        let content = bench.snapshot();
        let hold = Hold::at(&bench.hooks, moment);
        thread::scope(|scope| {
            let writer = scope.spawn(|| write(&bench, 0, 1));
            hold.wait();
            let thawer = scope.spawn(|| one.thaw());
            while !is_gone(&*one) {
                thread::yield_now();
            }
            bench.check_locations(&*two, &content, || {});
            hold.release();
            writer.join().unwrap();
            thawer.join().unwrap();
        });
        assert_eq!(used(&bench), 1);
        assert!(read_all(&*two).unwrap() == content);
        assert_eq!(bench.check_locations(&*two, &content, || {}), 2 * COPY_UNIT);
        two.thaw();
        assert_eq!(used(&bench), 0, "no slot is lost");
    }
}

/// Whoever still reads a thawed image, by the host or by the disk, may read what the slot holds now.
#[test]
fn a_reader_of_a_slot_that_was_given_to_another_image_says_gone() {
    let bench = Bench::full(2 * COPY_UNIT, 1);
    let one = bench.live.freeze().unwrap();
    let content = bench.snapshot();
    write(&bench, 0, 1);
    let two = bench.live.freeze().unwrap();
    let hold = Hold::at(&bench.hooks, |moment| {
        moment.side == Side::CopyArea && moment.operation == Operation::Read && !moment.done
    });
    thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&*one));
        hold.wait();
        let kept = bench.check_locations(&*one, &content, || {
            one.thaw();
            write(&bench, 1, 2);
        });
        assert_eq!(kept, 0);
        let mut slot = vec![0; COPY_UNIT as usize];
        bench.copy_area.peek(crate::limits::COPY_AREA_HEADER, &mut slot);
        assert_eq!(slot[0], original(COPY_UNIT), "the slot is in use again");
        hold.release();
        assert!(matches!(reader.join().unwrap(), Err(FrozenError::Gone(_))));
    });
    assert_eq!(read_all(&*two).unwrap()[COPY_UNIT as usize], original(COPY_UNIT));
}

#[test]
fn for_room_the_oldest_ends_and_the_others_stay() {
    let bench = Bench::full(6 * COPY_UNIT, 3);
    let images: Vec<_> = (0..3_u8)
        .map(|round| {
            let made = (bench.live.freeze().unwrap(), bench.snapshot());
            write(&bench, 0, round + 1);
            made
        })
        .collect();
    // A copy of unit 0 for each: full.
    assert_eq!(used(&bench), 3);
    write(&bench, 1, 9);
    assert!(is_gone(&*images[0].0));
    for (image, content) in &images[1..] {
        assert!(read_all(&**image).unwrap() == *content);
    }
    assert_eq!(used(&bench), 3);
    // Two units at once take more than the next one gives back.
    bench
        .live
        .write_at(2 * COPY_UNIT, &vec![4; 2 * COPY_UNIT as usize], false)
        .unwrap();
    assert!(is_gone(&*images[1].0));
    let mut live = [0; 1];
    bench.live.read_at(3 * COPY_UNIT, &mut live).unwrap();
    assert_eq!(live, [4], "the writer goes on, whatever it costs");
}

#[test]
fn an_error_of_the_copy_costs_the_images_that_need_it() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let one = bench.live.freeze().unwrap();
    let content = bench.snapshot();
    write(&bench, 0, 1);
    let two = bench.live.freeze().unwrap();
    bench.hooks.set(|moment| match (moment.operation, moment.done) {
        (Operation::WriteThrough, false) => Err(std::io::Error::other("injected")),
        _ => Ok(()),
    });
    write(&bench, 0, 2);
    bench.hooks.set(|_| Ok(()));
    assert!(is_gone(&*two));
    assert!(read_all(&*one).unwrap() == content);
    assert_eq!(used(&bench), 1, "the slot of the copy that failed is free");
}

#[test]
fn what_a_witness_lost_is_known_to_every_image_before_it_is_renewed() {
    let bench = Bench::full(COPY_UNIT, 8);
    let images = [(); 2].map(|()| bench.live.freeze().unwrap());
    *bench.standing.lock().unwrap() = Standing::ContentLost("a writer".into());
    bench.was_open.store(true, std::sync::atomic::Ordering::SeqCst);
    // Nobody asked the images meanwhile; this renews the witness.
    let next = bench.live.freeze().unwrap();
    assert!(read_all(&*next).is_ok());
    assert!(images.iter().all(|image| is_gone(&**image)));
}

#[test]
fn units_of_every_size_keep_the_frozen_bytes() {
    for unit in [4096, 16 << 10, 256 << 10, 1 << 20] {
        let size = 3 * unit + 4097;
        let bench = Bench::in_units(unit, size, 8);
        let one = bench.live.freeze().unwrap();
        let content = bench.snapshot();
        bench.live.write_at(unit - 1, &[1, 2], false).unwrap();
        let two = bench.live.freeze().unwrap();
        let later = bench.snapshot();
        bench.live.trim(0, size, false).unwrap();
        assert_eq!(bench.live.copy_area_use().used, (size.div_ceil(unit) + 2) * unit);
        for (image, content) in [(&one, &content), (&two, &later)] {
            assert!(read_all(&**image).unwrap() == *content);
            assert_eq!(bench.check_locations(&**image, content, || {}), size);
        }
    }
}
