//! The frozen view against a plain copy of the origin, under any order of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use crate::cow::tests::bench::{Bench, read_all};
use crate::frozen::{FrozenError, FrozenImage};
use crate::limits::COPY_UNIT;
use crate::range::ByteRange;

const SIZE: u64 = 5 * COPY_UNIT + 777;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Trim(u64, u64),
    Zero(u64, u64, bool),
    Freeze,
    Thaw,
    Read(u64, u64),
}

/// Offsets near the edges of units and pages, more often than elsewhere.
fn spans() -> impl Strategy<Value = (u64, u64)> {
    let edge = (0..=5u64, -2i64..=2)
        .prop_map(|(unit, off)| (unit * COPY_UNIT).saturating_add_signed(off).min(SIZE - 1));
    let offset = prop_oneof![edge, (0..SIZE / 4096).prop_map(|page| page * 4096), 0..SIZE];
    let len = prop_oneof![1..16u64, Just(4096), Just(COPY_UNIT), 1..SIZE];
    (offset, len).prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (spans(), any::<u8>()).prop_map(|((offset, len), byte)| Step::Write(offset, len, byte)),
        2 => spans().prop_map(|(offset, len)| Step::Trim(offset, len)),
        2 => (spans(), any::<bool>()).prop_map(|((offset, len), no_hole)| Step::Zero(offset, len, no_hole)),
        2 => Just(Step::Freeze),
        1 => Just(Step::Thaw),
        3 => spans().prop_map(|(offset, len)| Step::Read(offset, len)),
    ]
}

fn filled() -> impl Strategy<Value = Vec<ByteRange>> {
    let page = (0..SIZE / 4096).prop_map(|page| ByteRange::new(page * 4096, 4096).unwrap());
    prop_oneof![
        Just(vec![ByteRange::new(0, SIZE).unwrap()]),
        proptest::collection::vec(page, 0..40)
    ]
}

fn span(offset: u64, len: u64) -> std::ops::Range<usize> {
    offset as usize..(offset + len) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn frozen_view_is_constant_under_any_write_order(filled in filled(), steps in proptest::collection::vec(steps(), 1..40)) {
        let bench = Bench::new(SIZE, 6, &filled);
        let mut live = bench.snapshot();
        let mut frozen: Option<(Arc<dyn FrozenImage>, Vec<u8>)> = None;
        for step in steps {
            match step {
                Step::Write(offset, len, byte) => {
                    bench.live.write_at(offset, &vec![byte; len as usize], byte % 2 == 0).unwrap();
                    live[span(offset, len)].fill(byte);
                }
                Step::Trim(offset, len) => {
                    bench.live.trim(offset, len, false).unwrap();
                    live[span(offset, len)].fill(0);
                }
                Step::Zero(offset, len, no_hole) => {
                    bench.live.write_zeroes(offset, len, no_hole, false).unwrap();
                    live[span(offset, len)].fill(0);
                }
                Step::Freeze => match bench.live.freeze() {
                    Ok(image) => {
                        prop_assert!(frozen.is_none());
                        frozen = Some((image, live.clone()));
                    }
                    Err(error) => prop_assert!(frozen.is_some(), "{error}"),
                },
                Step::Thaw => {
                    if let Some((image, _)) = frozen.take() {
                        image.thaw();
                        prop_assert!(matches!(read_all(&*image), Err(FrozenError::Gone(_))));
                    }
                }
                Step::Read(offset, len) => {
                    let mut bytes = vec![0xEE; len as usize];
                    bench.live.read_at(offset, &mut bytes).unwrap();
                    prop_assert!(bytes == live[span(offset, len)]);
                    if let Some((image, expected)) = &frozen {
                        image.read_at(offset, &mut bytes).unwrap();
                        prop_assert!(bytes == expected[span(offset, len)]);
                    }
                }
            }
            if let Some((image, expected)) = &frozen {
                prop_assert!(read_all(&**image).unwrap() == *expected);
                let kept = bench.check_locations(&**image, expected, || {});
                prop_assert_eq!(kept, SIZE, "everything is direct again once the map is asked anew");
            }
        }
        prop_assert!(bench.snapshot() == live);
    }
}

/// A generator that needs no crate: its seed is printed when a check fails.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn frozen_view_is_constant_under_concurrent_writers() {
    for seed in 1..=6 {
        let bench = Bench::full(SIZE, 6);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..3 {
                let (bench, stop) = (&bench, &stop);
                scope.spawn(move || {
                    let mut dice = Dice(seed * 1000 + writer + 1);
                    while !stop.load(Ordering::Relaxed) {
                        let offset = dice.roll(SIZE);
                        let len = (1 + dice.roll(20_000)).min(SIZE - offset);
                        match dice.roll(4) {
                            0 => bench.live.trim(offset, len, false),
                            1 => bench.live.write_zeroes(offset, len, dice.roll(2) == 0, false),
                            _ => {
                                bench
                                    .live
                                    .write_at(offset, &vec![dice.roll(256) as u8; len as usize], false)
                            }
                        }
                        .unwrap();
                    }
                });
            }
            // The checks run in a scope of their own, so that a failed one stops the writers too.
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..15 {
                    let image = bench.live.freeze().unwrap();
                    let frozen = read_all(&*image).unwrap();
                    for _ in 0..4 {
                        assert!(read_all(&*image).unwrap() == frozen, "seed {seed}");
                        bench.check_locations(&*image, &frozen, thread::yield_now);
                    }
                    image.thaw();
                }
            }));
            stop.store(true, Ordering::Relaxed);
            checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}
