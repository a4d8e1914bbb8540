//! Every way to ask says the same of every byte.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::frozen::{Attestation, Stability, Strength};
use crate::identity::Identity;
use crate::map::ContentMap;
use crate::store::{Below, Store, StoreId, StoreKind};

const SIZE: u64 = 64;
const THEIRS: u64 = 7;

/// An image of bytes that are never zero where they are data, in one place, with some holes.
struct Bytes {
    description: Description,
    content: ContentMap,
    free: FreeSpace,
    graph: Arc<StoreGraph>,
    top: StoreId,
    changed: ChangedMap,
    gone: AtomicBool,
}

impl Bytes {
    fn new(holes: &[ByteRange], free: &[ByteRange]) -> Arc<Self> {
        let mut data = Vec::new();
        let mut at = 0;
        for hole in holes.iter().copied().chain([range(SIZE, SIZE + 1)]) {
            data.extend(ByteRange::from_bounds(at, hole.start()).map(|range| Extent {
                range,
                content: Content::Data,
            }));
            at = hole.end();
        }
        let mut graph = StoreGraph::new();
        let top = graph.add(Store {
            kind: StoreKind::Disk,
            identity: Identity::new("id", "disk").unwrap(),
            label: "disk".to_owned(),
            size: 2000,
            block_size: None,
            below: Below::Disk,
        });
        Arc::new(Self {
            graph: Arc::new(graph),
            top,
            description: Description {
                uuid: Uuid::new_v4(),
                method: "lvm-snapshot",
                strength: Strength::FileSystem,
                stability: Stability::Moves,
                attestation: Attestation::Witnessed,
                frozen_at: SystemTime::UNIX_EPOCH,
            },
            content: ContentMap::from_extents(SIZE, data),
            free: FreeSpace::of_runs(SIZE, free),
            changed: ChangedMap::new(SIZE, 1, vec![0]),
            gone: AtomicBool::new(false),
        })
    }
}

impl FrozenImage for Bytes {
    fn description(&self) -> &Description {
        &self.description
    }

    fn size(&self) -> u64 {
        SIZE
    }

    fn graph(&self) -> Arc<StoreGraph> {
        Arc::clone(&self.graph)
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        self.stands()?;
        let extents = self.content.within(range).take(limit).map(|extent| StatusExtent {
            range: extent.range,
            content: extent.content,
            generation: Generation::from_wire(THEIRS),
            place: (extent.content == Content::Data).then_some(Place {
                store: self.top,
                offset: 1000 + extent.range.start(),
            }),
        });
        Ok(Status {
            graph: self.graph(),
            extents: extents.collect(),
        })
    }

    fn stands(&self) -> Result<(), FrozenError> {
        match self.gone.load(Ordering::SeqCst) {
            true => Err(FrozenError::Gone("thawed".to_owned())),
            false => Ok(()),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        for (at, byte) in (offset..).zip(buf.iter_mut()) {
            let is_zero = self.content.is_zero(range(at, at + 1));
            *byte = if is_zero { 0 } else { byte_at(at) };
        }
        self.stands()
    }

    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        Ok(self.free.clone())
    }

    fn changed_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let older: &dyn Any = older;
        assert!(older.is::<Self>(), "its own kind is asked");
        Ok(self.changed.clone())
    }

    fn thaw(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start, end).unwrap()
}

fn byte_at(at: u64) -> u8 {
    u8::try_from(at % 200 + 1).unwrap()
}

fn without(image: &Arc<Bytes>) -> Arc<dyn FrozenImage> {
    let clock = GenerationClock::start().unwrap();
    let image: Arc<dyn FrozenImage> = Arc::clone(image) as _;
    without_free_space(&image, &clock).unwrap()
}

/// Some ranges in rising order.
fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
    proptest::collection::vec((1u64..12, 1u64..12), 0..5).prop_map(|pieces| {
        let mut at = 0;
        let mut ranges = Vec::new();
        for (gap, len) in pieces {
            let (start, end) = (at + gap, (at + gap + len).min(SIZE));
            ranges.extend(ByteRange::from_bounds(start, end));
            at = end.max(start);
        }
        ranges
    })
}

proptest! {
    #[test]
    fn whoever_asks_is_told_the_same_of_every_byte(
        holes in ranges(),
        free in ranges(),
        start in 0..SIZE,
        len in 1..SIZE,
        limit in 1usize..6,
    ) {
        let image = Bytes::new(&holes, &free);
        let without = without(&image);
        let asked = range(start, (start + len).min(SIZE));
        let mut buf = vec![0xee; usize::try_from(asked.len()).unwrap()];
        without.read_at(start, &mut buf).unwrap();
        for (at, byte) in (start..).zip(&buf) {
            let nobody_has_it = free.iter().any(|free| free.contains(at));
            let is_zero = nobody_has_it || image.content.is_zero(range(at, at + 1));
            prop_assert_eq!(*byte, if is_zero { 0 } else { byte_at(at) });
        }
        let status = without.status(asked, limit).unwrap().extents;
        let content = without.content(asked, limit).unwrap();
        prop_assert!((1..=limit).contains(&status.len()) && (1..=limit).contains(&content.len()));
        let mut at = start;
        for extent in &status {
            prop_assert_eq!(extent.range.start(), at);
            at = extent.range.end();
            let is_data = extent.content == Content::Data;
            prop_assert_eq!(extent.place.is_some(), is_data);
            if let Some(place) = extent.place {
                prop_assert_eq!(place.offset, 1000 + extent.range.start());
            }
            for offset in extent.range.start()..extent.range.end() {
                let byte = buf[usize::try_from(offset - start).unwrap()];
                prop_assert_eq!(is_data, byte != 0);
                let nobody_has_it = free.iter().any(|free| free.contains(offset));
                prop_assert_eq!(extent.generation == Generation::from_wire(THEIRS), !nobody_has_it);
                prop_assert!(extent.generation.is_direct());
            }
        }
        let mut at = start;
        for extent in content {
            prop_assert_eq!(extent.range.start(), at);
            at = extent.range.end();
            for offset in extent.range.start()..extent.range.end() {
                let byte = buf[usize::try_from(offset - start).unwrap()];
                prop_assert_eq!(extent.content == Content::Data, byte != 0);
            }
        }
    }

    #[test]
    fn what_was_given_to_somebody_or_given_back_has_changed(then in ranges(), now in ranges()) {
        let (older, newer) = (Bytes::new(&[], &then), Bytes::new(&[], &now));
        let changed = without(&newer).changed_since(&*without(&older)).unwrap();
        for at in 0..SIZE {
            let is_in = |ranges: &[ByteRange]| ranges.iter().any(|range| range.contains(at));
            prop_assert_eq!(changed.is_changed(at), is_in(&then) != is_in(&now));
        }
    }
}

#[test]
fn zeroes_of_what_is_gone_are_not_given_out() {
    let image = Bytes::new(&[], &[range(8, 32)]);
    let without = without(&image);
    without.read_at(10, &mut [1; 4]).unwrap();
    without.thaw();
    assert!(matches!(
        without.read_at(10, &mut [1; 4]),
        Err(FrozenError::Gone(_))
    ));
}

#[test]
fn an_image_with_all_of_its_space_is_no_parent() {
    let (older, newer) = (Bytes::new(&[], &[]), Bytes::new(&[], &[]));
    assert_eq!(
        without(&newer).changed_since(&*older).unwrap_err(),
        NoLineage::Unrelated
    );
}
