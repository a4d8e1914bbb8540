//! A frozen image for tests: its map is written down, its bytes follow from their offsets.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::SystemTime;

use uuid::Uuid;
use volmap::frozen::{
    Attestation, ChangedMap, Description, FrozenError, FrozenImage, NoLineage, Stability, Status,
    StatusExtent, Strength,
};
use volmap::generation::Generation;
use volmap::identity::Identity;
use volmap::map::{Content, Extent};
use volmap::range::ByteRange;
use volmap::store::{Below, Place, Segment, Store, StoreGraph, StoreId, StoreKind};

use super::{Export, Piece, Pieces, ReadShape};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Scripted {
    description: Description,
    graph: Arc<StoreGraph>,
    extents: Mutex<Vec<StatusExtent>>,
    gone: AtomicBool,
    samples: AtomicUsize,
    /// Of what others are told to have changed since; nothing is known where it is empty.
    changed: Mutex<Option<ChangedMap>>,
    /// Has it say that this cannot be found out now.
    pub(crate) is_busy: AtomicBool,
    /// How many times it was compared, and told that it is kept.
    pub(crate) comparisons: AtomicUsize,
    pub(crate) keeps: AtomicUsize,
    /// What the next thaw waits for.
    pub(crate) thaw_waits_for: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Scripted {
    pub(crate) fn new(graph: StoreGraph, extents: Vec<StatusExtent>) -> Arc<Self> {
        Arc::new(Self {
            description: Description {
                uuid: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
                method: "reflink",
                strength: Strength::CrashConsistent,
                stability: Stability::Pinned,
                attestation: Attestation::Witnessed,
                frozen_at: SystemTime::UNIX_EPOCH,
            },
            graph: Arc::new(graph),
            extents: Mutex::new(extents),
            gone: AtomicBool::new(false),
            samples: AtomicUsize::new(0),
            changed: Mutex::new(None),
            is_busy: AtomicBool::new(false),
            comparisons: AtomicUsize::new(0),
            keeps: AtomicUsize::new(0),
            thaw_waits_for: Mutex::new(None),
        })
    }

    /// Says this of every older image, and lets itself be kept.
    pub(crate) fn telling(self: Arc<Self>, changed: ChangedMap) -> Arc<Self> {
        *self.changed.lock().unwrap() = Some(changed);
        self
    }

    /// 1 MiB of data, a hole of 1 MiB, a zero of 1 MiB, 1 MiB of data; without locations.
    pub(crate) fn with_holes() -> Arc<Self> {
        let contents = [Content::Data, Content::Hole, Content::Zero, Content::Data];
        let extents = (0..).zip(contents).map(|(at, content)| StatusExtent {
            range: ByteRange::new(at * MIB, MIB).unwrap(),
            content,
            generation: Generation::NEVER_DIRECT,
            place: None,
        });
        Self::new(StoreGraph::new(), extents.collect())
    }

    /// The same with an identity of its own.
    pub(crate) fn drawn() -> Arc<Self> {
        let mut image = Self::with_holes();
        if let Some(image) = Arc::get_mut(&mut image) {
            image.description.uuid = Uuid::new_v4();
        }
        image
    }

    /// How many times the status was asked for.
    pub(crate) fn samples(&self) -> usize {
        self.samples.load(Ordering::SeqCst)
    }
}

impl FrozenImage for Scripted {
    fn description(&self) -> &Description {
        &self.description
    }

    fn size(&self) -> u64 {
        self.extents.lock().unwrap().last().map_or(0, |e| e.range.end())
    }

    fn graph(&self) -> Arc<StoreGraph> {
        Arc::clone(&self.graph)
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        self.samples.fetch_add(1, Ordering::SeqCst);
        if self.gone.load(Ordering::SeqCst) {
            return Err(FrozenError::Gone("thawed".into()));
        }
        let extents = self.extents.lock().unwrap();
        let answer = extents
            .iter()
            .filter_map(|extent| {
                let clipped = extent.range.intersection(range)?;
                let skipped = clipped.start() - extent.range.start();
                Some(StatusExtent {
                    range: clipped,
                    place: extent.place.map(|place| Place {
                        offset: place.offset + skipped,
                        ..place
                    }),
                    ..*extent
                })
            })
            .take(limit)
            .collect();
        Ok(Status {
            graph: self.graph(),
            extents: answer,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        if self.gone.load(Ordering::SeqCst) {
            return Err(FrozenError::Gone("thawed".into()));
        }
        let extents = self.extents.lock().unwrap();
        for (at, byte) in (offset..).zip(buf) {
            let data = extents
                .iter()
                .any(|e| e.range.contains(at) && e.content == Content::Data);
            *byte = if data { u8::try_from(at % 251).unwrap() } else { 0 };
        }
        Ok(())
    }

    /// As the trait allows: whether the image stands is not asked.
    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        let extents = self.extents.lock().unwrap();
        let clipped = extents.iter().filter_map(|extent| {
            Some(Extent {
                range: extent.range.intersection(range)?,
                content: extent.content,
            })
        });
        Ok(clipped.take(limit).collect())
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn stands(&self) -> Result<(), FrozenError> {
        match self.gone.load(Ordering::SeqCst) {
            true => Err(FrozenError::Gone("thawed".into())),
            false => Ok(()),
        }
    }

    fn changed_since(&self, _: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        self.comparisons.fetch_add(1, Ordering::SeqCst);
        if self.is_busy.load(Ordering::SeqCst) {
            return Err(NoLineage::NotNow("scripted".to_owned()));
        }
        let changed = self.changed.lock().unwrap().clone();
        changed.ok_or(NoLineage::Forgotten)
    }

    fn keep_as_parent(&self) -> bool {
        self.keeps.fetch_add(1, Ordering::SeqCst);
        self.can_be_parent()
    }

    fn can_be_parent(&self) -> bool {
        self.changed.lock().unwrap().is_some() && self.stands().is_ok()
    }

    fn thaw(&self) {
        let word = self.thaw_waits_for.lock().unwrap().take();
        if let Some(word) = word {
            // Nobody left to say it is as good.
            let _ = word.recv();
        }
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// What a read gives, put together.
pub(crate) fn assembled(export: &dyn Export, range: ByteRange, shape: ReadShape) -> Vec<u8> {
    let mut pieces = Pieces::default();
    export.read(range, shape, &mut pieces).unwrap();
    bytes_of(&mut pieces)
}

/// The bytes of pieces, which must follow each other.
pub(crate) fn bytes_of(pieces: &mut Pieces) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces.drain() {
        match piece {
            Piece::Data { bytes, .. } => all.extend_from_slice(&bytes),
            Piece::File { range, file } => {
                let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
                file.read_exact_at(&mut bytes, range.start()).unwrap();
                all.extend(bytes);
            }
            Piece::Zeroes(range) => all.resize(all.len() + usize::try_from(range.len()).unwrap(), 0),
        }
    }
    all
}

/// A store of `size` bytes named `id:NAME`.
pub(crate) fn store(kind: StoreKind, name: &str, size: u64, below: Below) -> Store {
    Store {
        kind,
        identity: Identity::new("id", name).unwrap(),
        label: name.into(),
        size,
        block_size: None,
        below,
    }
}

/// `len` bytes from `start` lie at `offset` of `below`.
pub(crate) fn segment(start: u64, len: u64, below: StoreId, offset: u64) -> Segment {
    Segment {
        range: ByteRange::new(start, len).unwrap(),
        below: Place { store: below, offset },
    }
}
