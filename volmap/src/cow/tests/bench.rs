//! An origin in memory, and the check that its locations tell the truth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use crate::cow::tests::memory::{Hooks, Memory, Moment, Operation, Side};
use crate::cow::{CopyOptions, CopyUnit, CowError, Ground, OnFull, Origin, Survey, Witness};
use crate::frozen::{Attestation, FrozenError, FrozenImage, Status, StatusExtent};
use crate::generation::GenerationClock;
use crate::identity::Identity;
use crate::limits::COPY_AREA_HEADER;
use crate::map::Content;
use crate::range::ByteRange;
use crate::storage::Standing;
use crate::store::{Below, Store, StoreGraph, StoreId, StoreKind};

pub(crate) struct Bench {
    pub(crate) live: Arc<Origin>,
    pub(super) origin: Memory,
    pub(super) copy_area: Memory,
    pub(super) standing: Arc<Mutex<Standing>>,
    /// Whether somebody else opened the origin; a survey renews the guard.
    pub(super) was_open: Arc<AtomicBool>,
    /// Whether what the copy area lies on is not understood at the next survey.
    pub(super) copies_are_opaque: Arc<AtomicBool>,
    pub(crate) hooks: Hooks,
}

#[derive(Clone)]
struct MemoryGround {
    origin: Memory,
    standing: Arc<Mutex<Standing>>,
    was_open: Arc<AtomicBool>,
    copies_are_opaque: Arc<AtomicBool>,
    sizes: [u64; 2],
}

struct Told(Arc<Mutex<Standing>>);

impl Witness for Told {
    fn check(&self) -> Standing {
        self.0.lock().unwrap().clone()
    }
}

impl Ground for MemoryGround {
    fn settle(&self) -> Result<(), CowError> {
        Ok(self.origin.around(Operation::Settle, 0, || {})?)
    }

    fn survey(&self, alone: bool) -> Result<Survey, CowError> {
        assert!(
            !self.origin.is_dirty(),
            "a map shows nothing of what is not on the device"
        );
        let mut origin_was_open = false;
        self.origin.around(Operation::Survey, 0, || {
            origin_was_open = alone && self.was_open.swap(false, Ordering::SeqCst);
            if origin_was_open {
                *self.standing.lock().unwrap() = Standing::Good;
            }
        })?;
        let mut graph = StoreGraph::new();
        let [origin, copy_area] = ["origin", "copy"].map(|name| Identity::new("id", name).unwrap());
        let below_copies = match self.copies_are_opaque.load(Ordering::SeqCst) {
            true => Below::Opaque("not in sync".into()),
            false => Below::Disk,
        };
        let [origin, copy_area] = [
            (origin, self.sizes[0], Below::Disk),
            (copy_area, self.sizes[1], below_copies),
        ]
        .map(|(identity, size, below)| {
            graph.add(Store {
                kind: StoreKind::Disk,
                label: identity.to_string(),
                identity,
                size,
                block_size: None,
                below,
            })
        });
        Ok(Survey {
            graph,
            content: self.origin.content(),
            origin: Some(origin),
            copy_area: Some(copy_area),
            attestation: Attestation::Witnessed,
            witness: Box::new(Told(Arc::clone(&self.standing))),
            origin_was_open,
        })
    }
}

/// What lies at `offset` before anybody wrote: never zero, and different in every unit and page.
pub(super) fn original(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57) as u8 | 0x80
}

/// With a deadline that no test comes to on a busy machine.
fn usual() -> CopyOptions {
    CopyOptions {
        window_max: Duration::from_secs(600),
        ready_max: Duration::from_secs(600),
        ..CopyOptions::default()
    }
}

impl Bench {
    /// An origin of `size` bytes with data in `filled`.
    pub(super) fn new(size: u64, slots: u64, filled: &[ByteRange]) -> Self {
        Self::with(size, slots, filled, usual())
    }

    /// `size` bytes, all data, whose writers are held when the copy area is full.
    pub(super) fn holding(size: u64, slots: u64, limit: Duration) -> Self {
        let options = CopyOptions {
            on_full: OnFull::Hold(limit),
            ..usual()
        };
        Self::with(size, slots, &[ByteRange::new(0, size).unwrap()], options)
    }

    /// The same in units of `unit` bytes.
    pub(super) fn in_units(unit: u64, size: u64, slots: u64) -> Self {
        let options = CopyOptions {
            unit: CopyUnit::new(unit).unwrap(),
            ..usual()
        };
        Self::with(size, slots, &[ByteRange::new(0, size).unwrap()], options)
    }

    /// `size` bytes, all data, whose freezes hold writers for so long at most.
    pub(super) fn hurried(size: u64, slots: u64, window_max: Duration) -> Self {
        let options = CopyOptions {
            window_max,
            ..usual()
        };
        Self::with(size, slots, &[ByteRange::new(0, size).unwrap()], options)
    }

    /// The same, and get ready for so long at most.
    pub(super) fn impatient(size: u64, slots: u64, within: Duration) -> Self {
        let options = CopyOptions {
            window_max: within,
            ready_max: within,
            ..usual()
        };
        Self::with(size, slots, &[ByteRange::new(0, size).unwrap()], options)
    }

    fn with(size: u64, slots: u64, filled: &[ByteRange], options: CopyOptions) -> Self {
        let hooks = Hooks::default();
        let copy_size = COPY_AREA_HEADER + slots * options.unit.bytes();
        let origin = Memory::new(Side::Origin, size, hooks.clone());
        let copy_area = Memory::new(Side::CopyArea, copy_size, hooks.clone());
        for range in filled {
            let bytes: Vec<u8> = (range.start()..range.end()).map(original).collect();
            origin.poke(range.start(), &bytes);
        }
        let standing = Arc::new(Mutex::new(Standing::Good));
        let was_open = Arc::new(AtomicBool::new(false));
        let copies_are_opaque = Arc::new(AtomicBool::new(false));
        let ground = MemoryGround {
            origin: origin.clone(),
            standing: Arc::clone(&standing),
            was_open: Arc::clone(&was_open),
            copies_are_opaque: Arc::clone(&copies_are_opaque),
            sizes: [size, copy_size],
        };
        let clock = Arc::new(GenerationClock::start().unwrap());
        let (a, b) = (Box::new(origin.clone()), Box::new(copy_area.clone()));
        let live = Origin::with_backings(a, b, Box::new(ground), clock, options).unwrap();
        Self {
            live,
            origin,
            copy_area,
            standing,
            was_open,
            copies_are_opaque,
            hooks,
        }
    }

    /// `size` bytes, all data.
    pub(crate) fn full(size: u64, slots: u64) -> Self {
        Self::new(size, slots, &[ByteRange::new(0, size).unwrap()])
    }

    pub(super) fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.origin.content().size()).unwrap()];
        self.origin.peek(0, &mut bytes);
        bytes
    }

    /// What a proxy does: learns the map, reads by it past the host, lets `between` happen, asks again, and keeps what has
    /// its generation still. What it keeps must be the frozen bytes. Returns how many bytes it kept.
    pub(super) fn check_locations(
        &self,
        image: &dyn FrozenImage,
        frozen: &[u8],
        between: impl FnOnce(),
    ) -> u64 {
        let whole = ByteRange::new(0, image.size()).unwrap();
        let Ok(Status { extents: learnt, .. }) = image.status(whole, usize::MAX) else {
            return 0;
        };
        assert_covers(whole, &learnt);
        let stores: Vec<StoreId> = image.graph().ids().collect();
        let read: Vec<Vec<u8>> = learnt
            .iter()
            .map(|extent| {
                let mut bytes = vec![0; extent.range.len() as usize];
                if let Some(place) = extent.place {
                    let disk = if place.store == stores[0] {
                        &self.origin
                    } else {
                        &self.copy_area
                    };
                    disk.peek(place.offset, &mut bytes);
                }
                bytes
            })
            .collect();
        between();
        let Ok(Status { extents: now, .. }) = image.status(whole, usize::MAX) else {
            return 0;
        };
        let mut kept = 0;
        for (extent, bytes) in learnt.iter().zip(&read) {
            assert_eq!(
                extent.generation.is_direct(),
                extent.place.is_some() || extent.content != Content::Data
            );
            for later in &now {
                if let Some(same) = later.range.intersection(extent.range)
                    && extent.generation.is_direct()
                    && later.generation == extent.generation
                {
                    let at = (same.start() - extent.range.start()) as usize;
                    let expected = &frozen[same.start() as usize..same.end() as usize];
                    assert!(
                        bytes[at..at + expected.len()] == *expected,
                        "a stale byte was kept in {same}"
                    );
                    kept += same.len();
                }
            }
        }
        kept
    }
}

fn assert_covers(range: ByteRange, extents: &[StatusExtent]) {
    let mut at = range.start();
    for extent in extents {
        assert_eq!(extent.range.start(), at);
        at = extent.range.end();
    }
    assert_eq!(at, range.end());
}

pub(super) fn read_all(image: &dyn FrozenImage) -> Result<Vec<u8>, FrozenError> {
    let mut bytes = vec![0xEE; image.size() as usize];
    image.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Holds the first thread that comes to a moment, until it is let go.
pub(crate) struct Hold {
    arrived: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Hold {
    pub(crate) fn at(hooks: &Hooks, wanted: impl Fn(Moment) -> bool + Send + Sync + 'static) -> Self {
        let (arrive, arrived) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let once = Mutex::new(Some((arrive, wait)));
        hooks.set(move |moment| {
            if wanted(moment) {
                let taken = once.lock().unwrap().take();
                if let Some((arrive, wait)) = taken {
                    arrive.send(()).unwrap();
                    wait.recv_timeout(PATIENCE).unwrap();
                }
            }
            Ok(())
        });
        Self { arrived, go }
    }

    pub(crate) fn wait(&self) {
        self.arrived
            .recv_timeout(PATIENCE)
            .expect("somebody comes to the moment");
    }

    pub(crate) fn release(self) {
        self.go.send(()).unwrap();
    }
}
