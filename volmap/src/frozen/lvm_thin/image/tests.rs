//! Both witnesses, asked in the right order, on a snapshot that does what the test says.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use uuid::Uuid;

use super::*;
use crate::frozen::{Attestation, Strength};
use crate::identity::Identity;
use crate::store::StoreKind;

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
    remapped: AtomicBool,
    refusal: Mutex<Option<NoSurvey>>,
    doubt: Mutex<Option<String>>,
    samples: AtomicUsize,
    surveys: AtomicUsize,
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
        below,
    }
}

impl Snapshot for Model {
    fn sample(&self) -> io::Result<Sample> {
        self.0.samples.fetch_add(1, Ordering::SeqCst);
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
        self.0.event.store(false, Ordering::SeqCst);
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "disk", 100 * BLOCK, Below::Disk));
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

    fn remove(&self) {
        self.0.removals.fetch_add(1, Ordering::SeqCst);
    }
}

fn image_of(stability: Stability, pause: Duration) -> (LvmThinImage, Arc<World>) {
    let world = Arc::new(World::default());
    let description = Description {
        uuid: Uuid::from_u128(1),
        method: "lvm-thin",
        strength: Strength::CrashConsistent,
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
    image.status(ByteRange::new(0, 3 * BLOCK).unwrap(), 10)
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
    let part = image.status(ByteRange::new(BLOCK - 1, 2).unwrap(), 1).unwrap();
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
fn what_lies_elsewhere_is_read_over_nbd() {
    let (image, world) = image();
    set(&world.event);
    set(&world.moved);
    let found = status(&image).unwrap();
    assert!(
        found
            .iter()
            .all(|e| !e.generation.is_direct() && e.place.is_none())
    );
    world.moved.store(false, Ordering::SeqCst);
    set(&world.event);
    assert!(!generation(&image).is_direct(), "a lost mapping stays lost");
    image.read_at(0, &mut [0; 16]).unwrap();
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
