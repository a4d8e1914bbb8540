//! Both witnesses, asked in the right order, on a snapshot that does what the test says.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::SystemTime;

use uuid::Uuid;

use super::*;
use crate::frozen::lvm_thin::locate::extents;
use crate::frozen::lvm_thin::metadata::{Run, ThinMap};
use crate::frozen::{Attestation, Status, StatusExtent, Strength};
use crate::identity::Identity;
use crate::store::{Place, StoreKind};
use crate::sys::DeviceNumber;

const BLOCK: u64 = 64 << 10;

/// The snapshot's world. Two blocks are mapped, and one is not.
#[derive(Default)]
struct World {
    written: AtomicBool,
    /// A write that comes while the next read copies.
    written_by_read: AtomicBool,
    /// Whether something happened to the layers since the last survey.
    event: Arc<AtomicBool>,
    /// What the next surveys find.
    moved: AtomicBool,
    dark: AtomicBool,
    remapped: AtomicBool,
    refusal: Mutex<Option<NoSurvey>>,
    doubt: Mutex<Option<String>>,
    samples: AtomicUsize,
    /// What the next sample waits for: a device that hangs.
    sample_waits_for: Mutex<Option<mpsc::Receiver<()>>>,
    surveys: AtomicUsize,
    /// Blocks of an older device and of this one, where they are compared; and what happens to the older one meanwhile.
    maps: Mutex<Option<(ThinMap, ThinMap)>>,
    meanwhile: Mutex<Option<Arc<World>>>,
    number: u64,
    pool: u32,
    has_external_origin: bool,
    removals: AtomicUsize,
}

struct Model(Arc<World>);

fn is(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

fn set(flag: &AtomicBool) {
    flag.store(true, Ordering::SeqCst);
}

fn store(kind: StoreKind, name: &str, size: u64, below: Below) -> Store {
    Store {
        kind,
        identity: Identity::new("id", name).unwrap(),
        label: name.into(),
        size,
        block_size: None,
        below,
    }
}

impl Snapshot for Model {
    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        Ok(FreeSpace::of_runs(3 * BLOCK, &[]))
    }

    fn sample(&self) -> io::Result<Sample> {
        self.0.samples.fetch_add(1, Ordering::SeqCst);
        let word = self.0.sample_waits_for.lock().unwrap().take();
        if let Some(word) = word {
            word.recv().unwrap();
        }
        Ok(match is(&self.0.written) {
            true => Sample::Lost("written to".to_owned()),
            false => Sample::Frozen,
        })
    }

    fn doubt(&self) -> io::Result<Option<String>> {
        Ok(self.0.doubt.lock().unwrap().clone())
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
        if is(&self.0.written_by_read) {
            set(&self.0.written);
        }
        buf.fill(7);
        Ok(())
    }

    fn survey(&self, _: Duration) -> Result<Survey, NoSurvey> {
        self.0.surveys.fetch_add(1, Ordering::SeqCst);
        if let Some(refusal) = self.0.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        // A witness that was lost stays so, until there is another.
        self.0.event.fetch_and(is(&self.0.dark), Ordering::SeqCst);
        let mut graph = StoreGraph::new();
        let below = match is(&self.0.dark) {
            true => Below::Opaque("on its way".to_owned()),
            false => Below::Disk,
        };
        let disk = graph.add(store(StoreKind::Disk, "disk", 100 * BLOCK, below));
        let segment = |block: u64, len: u64, store: StoreId, at: u64| Segment {
            range: ByteRange::new(block * BLOCK, len * BLOCK).unwrap(),
            below: Place {
                store,
                offset: at * BLOCK,
            },
        };
        let pool = segment(0, 40, disk, if is(&self.0.moved) { 50 } else { 5 });
        let pool = store(
            StoreKind::DeviceMapper,
            "pool",
            40 * BLOCK,
            Below::Segments(vec![pool]),
        );
        let pool = graph.add(pool);
        let first = if is(&self.0.remapped) { 11 } else { 10 };
        let segments = vec![segment(0, 1, pool, first), segment(2, 1, pool, 20)];
        let extents = segments.iter().map(|s| Extent {
            range: s.range,
            content: Content::Data,
        });
        let content = ContentMap::from_extents(3 * BLOCK, extents);
        let below = Below::Segments(segments);
        let event = Arc::clone(&self.0.event);
        Ok(Survey {
            top: graph.add(store(StoreKind::DeviceMapper, "thin", 3 * BLOCK, below)),
            graph,
            content,
            witness: Box::new(move || {
                if is(&event) {
                    Err("an event".to_owned())
                } else {
                    Ok(())
                }
            }),
        })
    }

    fn device(&self) -> Option<ThinTarget> {
        (!self.0.has_external_origin).then_some(ThinTarget {
            pool: DeviceNumber {
                major: 253,
                minor: self.0.pool,
            },
            device: self.0.number,
        })
    }

    fn maps_beside(&self, older: ThinTarget, size: u64, _: Duration) -> Result<Maps, NoSurvey> {
        assert_eq!(older.device, 0);
        if let Some(refusal) = self.0.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        if let Some(older) = &*self.0.meanwhile.lock().unwrap() {
            set(&older.written);
        }
        let maps = self.0.maps.lock().unwrap();
        let (then, now) = maps.as_ref().unwrap();
        Ok(Maps {
            then: extents(then, size, BLOCK),
            now: extents(now, 3 * BLOCK, BLOCK),
        })
    }

    fn remove(&self) {
        self.0.removals.fetch_add(1, Ordering::SeqCst);
    }
}

fn image_of(stability: Stability, pause: Duration) -> (LvmThinImage, Arc<World>) {
    image_in(World::default(), stability, pause)
}

fn image_in(world: World, stability: Stability, pause: Duration) -> (LvmThinImage, Arc<World>) {
    image_with(Strength::CrashConsistent, world, stability, pause)
}

fn image_with(
    strength: Strength,
    world: World,
    stability: Stability,
    pause: Duration,
) -> (LvmThinImage, Arc<World>) {
    let world = Arc::new(world);
    let description = Description {
        uuid: Uuid::from_u128(1),
        method: "lvm-thin",
        strength,
        stability,
        attestation: Attestation::Witnessed,
        frozen_at: SystemTime::now(),
    };
    let model = Model(Arc::clone(&world));
    let survey = model.survey(Duration::ZERO).unwrap();
    let clock = Arc::new(GenerationClock::start().unwrap());
    let image = LvmThinImage::new(description, 3 * BLOCK, Box::new(model), survey, &clock).pausing(pause);
    image.check().unwrap();
    world.surveys.store(0, Ordering::SeqCst);
    (image, world)
}

fn image() -> (LvmThinImage, Arc<World>) {
    image_of(Stability::Pinned, Duration::ZERO)
}

fn status(image: &LvmThinImage) -> Result<Vec<StatusExtent>, FrozenError> {
    Ok(image.status(ByteRange::new(0, 3 * BLOCK).unwrap(), 10)?.extents)
}

fn generation(image: &LvmThinImage) -> Generation {
    status(image).unwrap()[0].generation
}

fn is_gone<T>(answer: Result<T, FrozenError>) -> bool {
    matches!(answer, Err(FrozenError::Gone(_)))
}

#[test]
fn mapped_blocks_have_places_and_all_else_is_a_hole() {
    let (image, _) = image();
    let found = status(&image).unwrap();
    let contents: Vec<_> = found.iter().map(|e| (e.content, e.place.is_some())).collect();
    assert_eq!(
        contents,
        [
            (Content::Data, true),
            (Content::Hole, false),
            (Content::Data, true)
        ]
    );
    assert!(
        found.iter().all(|e| e.generation.is_direct()),
        "holes are confirmed, too"
    );
    assert_eq!(status(&image).unwrap(), found);
    let place = found[2].place.unwrap();
    let disk = image.graph().resolve(place, BLOCK).disk().unwrap();
    assert_eq!(disk.offset, 25 * BLOCK);
    let part = image
        .status(ByteRange::new(BLOCK - 1, 2).unwrap(), 1)
        .unwrap()
        .extents;
    assert_eq!(part.len(), 1);
    assert_eq!(part[0].range, ByteRange::new(BLOCK - 1, 1).unwrap());
}

#[test]
fn every_answer_looks_anew() {
    let (image, world) = image();
    let looks = |ask: &dyn Fn()| {
        let before = world.samples.load(Ordering::SeqCst);
        ask();
        world.samples.load(Ordering::SeqCst) - before
    };
    assert!(looks(&|| drop(status(&image))) > 0);
    assert!(looks(&|| image.stands().unwrap()) > 0);
    assert!(looks(&|| image.read_at(0, &mut [0; 16]).unwrap()) > 0);
}

#[test]
fn a_device_that_hangs_keeps_nobody_from_the_stores() {
    let (image, world) = image();
    let (say, word) = mpsc::channel();
    *world.sample_waits_for.lock().unwrap() = Some(word);
    thread::scope(|scope| {
        let asking = scope.spawn(|| status(&image));
        while world.sample_waits_for.lock().unwrap().is_some() {
            thread::yield_now();
        }
        let (done, told) = mpsc::channel();
        let image = &image;
        scope.spawn(move || done.send(image.graph()));
        let told = told.recv_timeout(Duration::from_secs(10));
        say.send(()).unwrap();
        asking.join().unwrap().unwrap();
        told.expect("a handshake must not wait for a device");
    });
}

#[test]
fn a_snapshot_that_was_written_to_is_gone_for_good() {
    let (image, world) = image();
    set(&world.written);
    assert!(is_gone(status(&image)));
    world.written.store(false, Ordering::SeqCst);
    assert!(is_gone(status(&image)) && is_gone(image.stands()) && is_gone(image.read_at(0, &mut [0])));
}

#[test]
fn bytes_that_were_copied_while_it_was_written_to_are_not_given_out() {
    let (image, world) = image();
    image.read_at(0, &mut [0; 16]).unwrap();
    set(&world.written_by_read);
    assert!(is_gone(image.read_at(0, &mut [0; 16])));
}

#[test]
fn what_lies_where_it_lay_is_read_under_a_new_generation() {
    let (image, world) = image();
    let before = status(&image).unwrap();
    set(&world.event);
    let after = status(&image).unwrap();
    assert_ne!(before[0].generation, after[0].generation);
    assert!(after.iter().all(|e| e.generation.is_direct()));
    assert_eq!(before[0].place, after[0].place);
    assert_eq!(generation(&image), after[0].generation, "and stays");
    assert_eq!(world.surveys.load(Ordering::SeqCst), 1);
}

#[test]
fn what_lies_elsewhere_is_told_of_there_under_a_new_generation() {
    let (image, world) = image();
    let disk_offset = |image: &LvmThinImage| {
        let all = ByteRange::new(0, 3 * BLOCK).unwrap();
        let Status { graph, extents } = image.status(all, 10).unwrap();
        let place = graph.resolve(extents[2].place?, BLOCK).disk()?;
        assert!(extents.iter().all(|e| e.generation.is_direct()));
        Some((extents[0].generation, place.offset / BLOCK))
    };
    let (first, offset) = disk_offset(&image).unwrap();
    assert_eq!(offset, 25);
    set(&world.event);
    set(&world.moved);
    let (second, offset) = disk_offset(&image).unwrap();
    assert_eq!(offset, 70);
    assert_ne!(first, second);

    // On its way it lies nowhere that is understood.
    set(&world.event);
    set(&world.dark);
    for _ in 0..2 {
        assert_eq!(disk_offset(&image), None);
        // One look is a tenth of the time at most.
        thread::sleep(Duration::from_millis(20));
    }
    image.read_at(0, &mut [0; 16]).unwrap();
    world.dark.store(false, Ordering::SeqCst);
    world.moved.store(false, Ordering::SeqCst);
    let (third, offset) = disk_offset(&image).unwrap();
    assert_eq!(offset, 25);
    assert!(third != first && third != second);
}

#[test]
fn a_map_of_other_blocks_is_another_image() {
    let (image, world) = image();
    set(&world.event);
    set(&world.remapped);
    assert!(is_gone(status(&image)));

    let (image, world) = self::image();
    set(&world.event);
    *world.refusal.lock().unwrap() = Some(NoSurvey::Gone("written".to_owned()));
    assert!(is_gone(status(&image)));
}

#[test]
fn what_cannot_be_mapped_again_now_is_mapped_again_later() {
    let (image, world) = image();
    let first = generation(&image);
    set(&world.event);
    *world.refusal.lock().unwrap() = Some(NoSurvey::NotNow("held by another".to_owned()));
    assert!(!generation(&image).is_direct());
    *world.refusal.lock().unwrap() = None;
    thread::sleep(Duration::from_millis(5));
    let second = generation(&image);
    assert!(second.is_direct() && second != first);
}

#[test]
fn what_cannot_be_understood_any_more_is_read_over_nbd_for_good() {
    let (image, world) = image();
    set(&world.event);
    *world.refusal.lock().unwrap() = Some(NoSurvey::Opaque("checksum".to_owned()));
    assert!(!generation(&image).is_direct());
    *world.refusal.lock().unwrap() = None;
    thread::sleep(Duration::from_millis(5));
    assert!(!generation(&image).is_direct());
    image.stands().unwrap();
}

#[test]
fn surveys_keep_a_distance_and_nothing_is_direct_meanwhile() {
    let (image, world) = image_of(Stability::Pinned, Duration::from_secs(3600));
    set(&world.event);
    assert!(generation(&image).is_direct(), "the first one is not waited for");
    set(&world.event);
    assert!(!generation(&image).is_direct());
    assert_eq!(world.surveys.load(Ordering::SeqCst), 1);
}

#[test]
fn a_pool_in_trouble_is_read_over_nbd_for_good() {
    let (image, world) = image();
    *world.doubt.lock().unwrap() = Some("needs_check".to_owned());
    assert!(!generation(&image).is_direct());
    *world.doubt.lock().unwrap() = None;
    assert!(!generation(&image).is_direct());
    image.read_at(0, &mut [0; 16]).unwrap();
}

#[test]
fn an_opaque_image_has_no_places() {
    let (image, _) = image_of(Stability::Opaque, Duration::ZERO);
    let found = status(&image).unwrap();
    assert!(
        found
            .iter()
            .all(|e| !e.generation.is_direct() && e.place.is_none())
    );
}

#[test]
fn a_thawed_image_is_gone_and_its_snapshot_removed() {
    let (image, world) = image();
    image.thaw();
    assert_eq!(world.removals.load(Ordering::SeqCst), 1);
    assert!(is_gone(status(&image)) && is_gone(image.read_at(0, &mut [0])));
    let (image, world) = self::image();
    drop(image);
    assert_eq!(world.removals.load(Ordering::SeqCst), 1);
}

/// An older snapshot, and a newer one whose pool says of them what the test does.
fn two(older: World, then: &[(u64, u64, u64)], now: &[(u64, u64, u64)]) -> [(LvmThinImage, Arc<World>); 2] {
    let map = |runs: &[(u64, u64, u64)]| ThinMap {
        runs: (runs.iter())
            .map(|&(thin, data, len)| Run { thin, data, len })
            .collect(),
        mapped_blocks: runs.iter().map(|run| run.2).sum(),
    };
    let newer = World {
        number: 1,
        maps: Mutex::new(Some((map(then), map(now)))),
        ..World::default()
    };
    [older, newer].map(|world| image_in(world, Stability::Opaque, Duration::ZERO))
}

#[test]
fn what_is_not_mapped_to_the_same_block_has_changed() {
    for (then, now, same) in [
        (&[(0, 7, 3)][..], &[(0, 7, 3)][..], [true, true, true]),
        (&[(0, 7, 3)], &[(0, 8, 3)], [false, false, false]),
        (&[(0, 7, 2)], &[(0, 7, 1), (1, 9, 1)], [true, false, true]),
        (&[(0, 7, 2)], &[(1, 8, 1)], [false, true, true]),
        (&[], &[(2, 0, 1)], [true, true, false]),
    ] {
        let [(older, _), (newer, _)] = two(World::default(), then, now);
        let map = newer.changed_since(&older).unwrap();
        assert_eq!(
            [0, 1, 2].map(|block| !map.is_changed(block * BLOCK)),
            same,
            "{then:?} {now:?}"
        );
        assert!(older.keep_as_parent());
    }
}

#[test]
fn snapshots_that_were_written_to_are_not_compared_and_neither_are_strangers() {
    let maps = [(0, 7, 3)];
    let [(older, world), (newer, now)] = two(World::default(), &maps, &maps);
    *now.refusal.lock().unwrap() = Some(NoSurvey::NotNow("held".to_owned()));
    assert!(matches!(newer.changed_since(&older), Err(NoLineage::NotNow(_))));
    *now.refusal.lock().unwrap() = None;
    *world.doubt.lock().unwrap() = Some("read-only".to_owned());
    assert!(matches!(newer.changed_since(&older), Err(NoLineage::Older(_))));
    assert!(!older.keep_as_parent());
    *world.doubt.lock().unwrap() = None;
    assert!(newer.changed_since(&older).is_ok());
    // While the maps are read.
    *now.meanwhile.lock().unwrap() = Some(Arc::clone(&world));
    assert!(matches!(newer.changed_since(&older), Err(NoLineage::Older(_))));
    assert!(!older.keep_as_parent());
    let [(older, _), (newer, now)] = two(World::default(), &maps, &maps);
    set(&now.written);
    assert!(matches!(newer.changed_since(&older), Err(NoLineage::Newer(_))));

    let elsewhere = World {
        pool: 9,
        ..World::default()
    };
    let [(older, _), (newer, _)] = two(elsewhere, &maps, &maps);
    assert_eq!(newer.changed_since(&older), Err(NoLineage::Unrelated));
    let external = World {
        has_external_origin: true,
        ..World::default()
    };
    let [(older, _), (newer, _)] = two(external, &maps, &maps);
    assert_eq!(newer.changed_since(&older), Err(NoLineage::NotTold("lvm-thin")));
    assert!(!older.keep_as_parent());
}

#[test]
fn free_space_is_told_only_of_what_was_frozen_for_the_image() {
    let (image, _) = image();
    assert!(matches!(image.free_space(), Err(NoFreeSpace::NotFrozen)));
    let (image, world) = image_with(
        Strength::FileSystem,
        World::default(),
        Stability::Pinned,
        Duration::ZERO,
    );
    assert_eq!(image.free_space().unwrap().bytes(), 0);
    set(&world.written);
    assert!(matches!(image.free_space(), Err(NoFreeSpace::Gone(_))));
}
