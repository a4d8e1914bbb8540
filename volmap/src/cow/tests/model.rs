//! The frozen view against a plain copy of the origin, under any order of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;
use uuid::Uuid;

use crate::cow::CopyUnit;
use crate::cow::tests::bench::{Bench, read_all};
use crate::frozen::{FrozenError, FrozenImage};
use crate::limits::COPY_UNIT;
use crate::map::Content;
use crate::range::ByteRange;

const SIZE: u64 = 5 * COPY_UNIT + 777;

/// As many frozen images as live at a time.
const IMAGES: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Trim(u64, u64),
    Zero(u64, u64, bool),
    Freeze,
    /// Of the images that live, counted around.
    Thaw(usize),
    Keep(usize),
    Forget(usize),
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
        3 => Just(Step::Freeze),
        2 => (0..IMAGES).prop_map(Step::Thaw),
        1 => (0..IMAGES).prop_map(Step::Keep),
        1 => (0..IMAGES).prop_map(Step::Forget),
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

/// A frozen image, and what has to be true of it.
struct Known {
    image: Arc<dyn FrozenImage>,
    content: Vec<u8>,
    /// Units with data at the freeze.
    data: BTreeSet<u64>,
    /// The copy that a unit moved to, by the number of the request that made it.
    copies: BTreeMap<u64, usize>,
    /// What was written since the freezes that were known at its own.
    changed: BTreeMap<Uuid, BTreeSet<u64>>,
}

/// The volume and its frozen images, as they have to be.
struct World {
    bench: Bench,
    live: Vec<u8>,
    known: Vec<Known>,
    /// What was written since each freeze that is remembered.
    since: BTreeMap<Uuid, BTreeSet<u64>>,
    /// Every image whose freeze is remembered.
    remembered: BTreeMap<Uuid, Arc<dyn FrozenImage>>,
    /// Those of them that nobody reads any more.
    kept: BTreeSet<Uuid>,
    requests: usize,
}

impl World {
    fn new(filled: &[ByteRange], slots: u64) -> Self {
        let bench = Bench::new(SIZE, slots, filled);
        Self {
            live: bench.snapshot(),
            bench,
            known: Vec::new(),
            since: BTreeMap::new(),
            remembered: BTreeMap::new(),
            kept: BTreeSet::new(),
            requests: 0,
        }
    }

    fn change(&mut self, offset: u64, len: u64, byte: u8) {
        self.live[span(offset, len)].fill(byte);
        self.requests += 1;
        for unit in CopyUnit::default().touching(ByteRange::new(offset, len).unwrap()) {
            for written in self.since.values_mut() {
                written.insert(unit);
            }
            for known in &mut self.known {
                if known.data.contains(&unit) {
                    known.copies.entry(unit).or_insert(self.requests);
                }
            }
        }
    }

    fn freeze(&mut self) {
        if self.known.len() == IMAGES {
            return;
        }
        let image = self.bench.live.freeze().unwrap();
        let whole = ByteRange::new(0, SIZE).unwrap();
        let data = image.content(whole, usize::MAX).unwrap().into_iter();
        let data = data.filter(|extent| extent.content == Content::Data);
        let known = Known {
            content: self.live.clone(),
            data: data
                .flat_map(|extent| CopyUnit::default().touching(extent.range))
                .collect(),
            copies: BTreeMap::new(),
            changed: self.since.clone(),
            image,
        };
        let uuid = known.image.description().uuid;
        self.since.insert(uuid, BTreeSet::new());
        self.remembered.insert(uuid, Arc::clone(&known.image));
        self.known.push(known);
    }

    fn thaw(&mut self, nth: usize) {
        if self.known.is_empty() {
            return;
        }
        let known = self.known.remove(nth % self.known.len());
        known.image.thaw();
        assert!(matches!(read_all(&*known.image), Err(FrozenError::Gone(_))));
        self.forget_image(&known.image.description().uuid);
    }

    fn forget_image(&mut self, uuid: &Uuid) {
        self.since.remove(uuid);
        self.remembered.remove(uuid);
        for other in &mut self.known {
            other.changed.remove(uuid);
        }
    }

    fn keep(&mut self, nth: usize) {
        if nth < self.known.len() {
            let known = self.known.remove(nth);
            assert!(known.image.keep_as_parent());
            assert!(matches!(read_all(&*known.image), Err(FrozenError::Gone(_))));
            self.kept.insert(known.image.description().uuid);
        }
    }

    fn forget(&mut self, nth: usize) {
        if let Some(uuid) = self.kept.iter().nth(nth).copied() {
            self.kept.remove(&uuid);
            self.remembered[&uuid].thaw();
            self.forget_image(&uuid);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(offset, len, byte) => {
                let data = vec![byte; len as usize];
                self.bench
                    .live
                    .write_at(offset, &data, byte.is_multiple_of(2))
                    .unwrap();
                self.change(offset, len, byte);
            }
            Step::Trim(offset, len) => {
                self.bench.live.trim(offset, len, false).unwrap();
                self.change(offset, len, 0);
            }
            Step::Zero(offset, len, no_hole) => {
                self.bench.live.write_zeroes(offset, len, no_hole, false).unwrap();
                self.change(offset, len, 0);
            }
            Step::Freeze => self.freeze(),
            Step::Thaw(nth) => self.thaw(nth),
            Step::Keep(nth) => self.keep(nth),
            Step::Forget(nth) => self.forget(nth),
            Step::Read(offset, len) => {
                let mut bytes = vec![0xEE; len as usize];
                self.bench.live.read_at(offset, &mut bytes).unwrap();
                assert!(bytes == self.live[span(offset, len)]);
                for known in &self.known {
                    known.image.read_at(offset, &mut bytes).unwrap();
                    assert!(bytes == known.content[span(offset, len)]);
                }
            }
        }
    }

    fn check(&self) {
        for known in &self.known {
            assert!(read_all(&*known.image).unwrap() == known.content);
            let kept = self.bench.check_locations(&*known.image, &known.content, || {});
            assert_eq!(
                kept, SIZE,
                "everything is direct again once the map is asked anew"
            );
            for (uuid, older) in &self.remembered {
                let expected = known.changed.get(uuid);
                let map = known.image.changed_since(&**older).ok();
                let units = map.map(|map| {
                    let units = (0..=SIZE / COPY_UNIT).filter(|unit| map.is_changed(unit * COPY_UNIT));
                    units.collect::<BTreeSet<u64>>()
                });
                assert_eq!(units.as_ref(), expected);
            }
        }
        // One copy for all who need it, and none that nobody needs.
        let copies = self.known.iter().flat_map(|known| &known.copies);
        let copies: BTreeSet<_> = copies.collect();
        assert_eq!(
            self.bench.live.copy_area_use().used,
            copies.len() as u64 * COPY_UNIT
        );
        assert!(self.bench.snapshot() == self.live);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn frozen_view_is_constant_under_any_write_order(filled in filled(), steps in proptest::collection::vec(steps(), 1..50)) {
        let mut world = World::new(&filled, 6 * IMAGES as u64);
        for step in steps {
            let before = world.bench.live.copy_area_use();
            let (used, growth) = (before.used, before.growth);
            world.step(&step);
            world.check();
            let fill = world.bench.live.copy_area_use();
            let froze = matches!(step, Step::Freeze);
            prop_assert!(froze || fill.used.saturating_sub(used) <= growth, "{step:?}: {before:?} {fill:?}");
        }
    }

    /// With too little room images end. Those that stand are right, and writers never notice.
    #[test]
    fn frozen_views_are_right_or_gone_when_room_is_short(slots in 1..12u64, steps in proptest::collection::vec(steps(), 1..50)) {
        let mut world = World::new(&[ByteRange::new(0, SIZE).unwrap()], slots);
        for step in steps {
            // What ended is not asked, but thawed by some later step or at the end.
            world.known.retain(|known| known.image.stands().is_ok());
            match step {
                Step::Keep(_) | Step::Forget(_) | Step::Read(..) => {}
                step => world.step(&step),
            }
            for known in &world.known {
                match read_all(&*known.image) {
                    Ok(bytes) => {
                        prop_assert!(bytes == known.content);
                        let kept = world.bench.check_locations(&*known.image, &known.content, || {});
                        prop_assert_eq!(kept, SIZE);
                    }
                    Err(error) => prop_assert!(matches!(error, FrozenError::Gone(_)), "{error}"),
                }
            }
            let fill = world.bench.live.copy_area_use();
            prop_assert!(fill.used <= fill.size);
            let standing = world.known.iter().filter(|known| known.image.stands().is_ok());
            let copies: BTreeSet<_> = standing.flat_map(|known| &known.copies).collect();
            prop_assert_eq!(fill.used, copies.len() as u64 * COPY_UNIT);
            prop_assert!(world.bench.snapshot() == world.live);
        }
    }
}

/// A generator that needs no crate: its seed is printed when a check fails.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn frozen_view_is_constant_under_concurrent_writers() {
    for seed in 1..=6 {
        let bench = Bench::full(SIZE, 6 * IMAGES as u64);
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
                let mut dice = Dice(seed);
                let mut images = Vec::new();
                for _ in 0..40 {
                    if images.len() < IMAGES && dice.roll(3) != 0 {
                        let image = bench.live.freeze().unwrap();
                        let frozen = read_all(&*image).unwrap();
                        images.push((image, frozen));
                    } else if !images.is_empty() {
                        images
                            .swap_remove(dice.roll(images.len() as u64) as usize)
                            .0
                            .thaw();
                    }
                    for (image, frozen) in &images {
                        assert!(read_all(&**image).unwrap() == *frozen, "seed {seed}");
                        bench.check_locations(&**image, frozen, thread::yield_now);
                    }
                }
                images.clear();
                assert_eq!(bench.live.copy_area_use().used, 0, "seed {seed}: no slot is lost");
            }));
            stop.store(true, Ordering::Relaxed);
            checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}
