//! A model of dm-snapshot with a persistent store: a LUN of bytes, the kernel's counters, and writers of the origin that go on one step
//! at a time.
//!
//! A write of a chunk that was not copied yet goes: prepare (the status counts it), copy, commit (entries are collected in memory and
//! written when nothing is under way any more, or the area is full), write the area sector by sector, and only then overwrite the origin.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

use super::schedule::{Chooser, Nobody};
use crate::frozen::lvm_snapshot::exception_store::Geometry;
use crate::frozen::lvm_snapshot::image::{LvmSnapshotImage, Patience, Snapshot, Survey};
use crate::frozen::lvm_snapshot::table::Sample;
use crate::frozen::{Attestation, Description, FreeSpace, FrozenError, NoFreeSpace, Stability, Strength};
use crate::generation::GenerationClock;
use crate::identity::Identity;
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, Store, StoreGraph, StoreKind};
use crate::sys::DeviceNumber;

pub(super) const CHUNK: u64 = 4096;
pub(super) const CHUNK_LEN: usize = 4096;
const SECTOR: usize = 512;

/// How many worlds there are: each has an origin of its own.
static WORLDS: AtomicU32 = AtomicU32::new(0);
const PER_AREA: u64 = CHUNK / 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// Wants to write.
    Begun,
    /// Its copy is counted and goes to this chunk of the store, in this turn.
    Prepared {
        new: u64,
        turn: u64,
    },
    /// The copy is on the LUN.
    Copied {
        new: u64,
        turn: u64,
    },
    /// Its entry waits in memory.
    Logged,
    /// Its entry is written by itself: sectors are left.
    Writing,
    /// The exception is complete: the origin may be overwritten.
    Free,
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Writer {
    chunk: u64,
    progress: Progress,
}

pub(super) struct Inner {
    lun: Vec<u8>,
    chunks: u64,
    store_chunks: u64,
    next_free: u64,
    turns: u64,
    turn: u64,
    pending: u64,
    area: u64,
    committed: u64,
    memory: Vec<u8>,
    /// Offsets in the area of sectors that are not on the LUN yet.
    unwritten: Vec<usize>,
    copied: Vec<(u64, u64)>,
    entered: Vec<(u64, u64)>,
    writers: Vec<Writer>,
    pub(super) lost: Option<String>,
    pub(super) witness: Result<(), String>,
    /// What origin and store lie on: the LUN, one that it was moved to, or nothing that is understood.
    pub(super) ground: Option<&'static str>,
    pub(super) surveys: u32,
    pub(super) samples: u32,
    pub(super) removed: u32,
    origin: DeviceNumber,
    chooser: Box<dyn Chooser>,
}

/// The LUN, the kernel and its writers.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

/// What chunk `chunk` was filled with at the freeze.
pub(super) fn frozen_byte(chunk: u64) -> u8 {
    u8::try_from(chunk % 100 + 1).unwrap()
}

const OVERWRITTEN: u8 = 0xee;

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl World {
    /// A volume and a store of so many chunks.
    pub(super) fn new(chunks: u64, store_chunks: u64, chooser: Box<dyn Chooser>) -> Self {
        let mut lun = vec![0; at((chunks + store_chunks) * CHUNK)];
        for chunk in 0..chunks {
            lun[at(chunk * CHUNK)..at((chunk + 1) * CHUNK)].fill(frozen_byte(chunk));
        }
        let mut inner = Inner {
            lun,
            chunks,
            store_chunks,
            next_free: 2,
            turns: 0,
            turn: 0,
            pending: 0,
            area: 0,
            committed: 0,
            memory: vec![0; at(CHUNK)],
            unwritten: Vec::new(),
            copied: Vec::new(),
            entered: Vec::new(),
            writers: Vec::new(),
            lost: None,
            witness: Ok(()),
            ground: Some("lun"),
            surveys: 0,
            samples: 0,
            removed: 0,
            origin: DeviceNumber {
                major: 253,
                minor: WORLDS.fetch_add(1, Ordering::Relaxed),
            },
            chooser,
        };
        let header = [0x7041_6e53u32, 1, 1, 8].map(u32::to_le_bytes).concat();
        let store = at(chunks * CHUNK);
        inner.lun[store..store + header.len()].copy_from_slice(&header);
        // What the disk held before, which the kernel never wipes: only the areas are.
        for chunk in 2..store_chunks {
            let start = at(inner.store_at(chunk));
            inner.lun[start..start + at(CHUNK)].fill(0xab);
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A writer that wants to overwrite a chunk. It goes on when it is chosen.
    pub(super) fn begin(&self, chunk: u64) {
        let progress = Progress::Begun;
        self.inner().writers.push(Writer { chunk, progress });
    }

    /// Lets everybody finish.
    pub(super) fn finish(&self) {
        let mut inner = self.inner();
        while let Some(&first) = inner.able().first() {
            inner.step(first);
        }
        assert!(
            inner.writers.iter().all(|w| w.progress == Progress::Done),
            "writers hang"
        );
    }

    /// Lets one writer take a step; `false` if it cannot.
    pub(super) fn step(&self, writer: usize) -> bool {
        let mut inner = self.inner();
        let able = inner.able().contains(&writer);
        if able {
            inner.step(writer);
        }
        able
    }

    /// Writes a chunk, from beginning to end.
    pub(super) fn write(&self, chunk: u64) {
        self.begin(chunk);
        self.finish();
    }

    /// A point of the observer: as many steps of writers as the chooser likes come first.
    pub(super) fn point(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner();
        loop {
            let able = inner.able();
            if able.is_empty() {
                return inner;
            }
            match inner.chooser.choose(able.len() + 1) {
                0 => return inner,
                chosen => inner.step(able[chosen - 1]),
            }
        }
    }

    /// What the origin holds now, a byte for each chunk.
    pub(super) fn origin_bytes(&self) -> Vec<u8> {
        let inner = self.point();
        (0..inner.chunks)
            .map(|chunk| inner.lun[at(chunk * CHUNK)])
            .collect()
    }

    /// The frozen image of another snapshot of this origin, in which nothing happens.
    pub(super) fn snapshot_of_the_same_origin(&self) -> LvmSnapshotImage {
        let (chunks, origin) = {
            let inner = self.inner();
            (inner.chunks, inner.origin)
        };
        let other = Self::new(chunks, 40, Box::new(Nobody));
        other.inner().origin = origin;
        other.image(Patience::default())
    }

    /// The byte of which a chunk at this place of the LUN consists.
    pub(super) fn read_lun(&self, offset: u64) -> u8 {
        let inner = self.point();
        let bytes = &inner.lun[at(offset)..at(offset + CHUNK)];
        assert!(bytes == [bytes[0]; CHUNK_LEN], "chunks are of one byte");
        bytes[0]
    }

    /// The frozen image of this world.
    pub(super) fn image(&self, patience: Patience) -> LvmSnapshotImage {
        self.image_of(Strength::CrashConsistent, patience)
    }

    /// The same, of what was so much in order.
    pub(super) fn image_of(&self, strength: Strength, patience: Patience) -> LvmSnapshotImage {
        let description = Description {
            uuid: Uuid::from_u128(1),
            method: "lvm-snapshot",
            strength,
            stability: Stability::Moves,
            attestation: Attestation::Witnessed,
            frozen_at: std::time::SystemTime::UNIX_EPOCH,
        };
        let size = self.inner().chunks * CHUNK;
        let clock = Arc::new(GenerationClock::start().unwrap());
        let survey = self.survey().unwrap();
        let geometry = Geometry::new(CHUNK / 512).unwrap();
        let image = LvmSnapshotImage::new(
            description,
            size,
            geometry,
            Box::new(self.clone()),
            survey,
            &clock,
        );
        image.patient(patience)
    }
}

impl Inner {
    pub(super) fn choose_by(&mut self, chooser: Box<dyn Chooser>) {
        self.chooser = chooser;
    }

    fn store_at(&self, chunk: u64) -> u64 {
        (self.chunks + chunk) * CHUNK
    }

    fn complete(&self, chunk: u64) -> Option<u64> {
        self.copied
            .iter()
            .find(|(old, _)| *old == chunk)
            .map(|(_, new)| *new)
    }

    /// The writers that can take a step.
    fn able(&self) -> Vec<usize> {
        let busy = |chunk| {
            let under_way =
                |w: &Writer| !matches!(w.progress, Progress::Begun | Progress::Free | Progress::Done);
            self.writers.iter().any(|w| w.chunk == chunk && under_way(w))
        };
        let able = |writer: &Writer| match writer.progress {
            Progress::Begun => !busy(writer.chunk),
            Progress::Prepared { .. } | Progress::Writing | Progress::Free => true,
            // In the order of their preparation, and not while an area is being written.
            Progress::Copied { turn, .. } => turn == self.turn && self.unwritten.is_empty(),
            Progress::Logged | Progress::Done => false,
        };
        (0..self.writers.len())
            .filter(|index| able(&self.writers[*index]))
            .collect()
    }

    fn step(&mut self, index: usize) {
        let chunk = self.writers[index].chunk;
        self.writers[index].progress = match self.writers[index].progress {
            Progress::Begun if self.complete(chunk).is_some() || self.lost.is_some() => Progress::Free,
            Progress::Begun => self.prepare(),
            Progress::Prepared { new, turn } => {
                let (from, to) = (at(chunk * CHUNK), at(self.store_at(new)));
                self.lun.copy_within(from..from + at(CHUNK), to);
                Progress::Copied { new, turn }
            }
            Progress::Copied { new, .. } => self.commit(chunk, new),
            Progress::Writing => {
                self.write_sector();
                if self.unwritten.is_empty() {
                    self.entries_are_written();
                    Progress::Free
                } else {
                    Progress::Writing
                }
            }
            Progress::Free => {
                let start = at(chunk * CHUNK);
                self.lun[start..start + at(CHUNK)].fill(OVERWRITTEN);
                Progress::Done
            }
            Progress::Logged | Progress::Done => panic!("it cannot go on"),
        };
    }

    fn prepare(&mut self) -> Progress {
        if self.next_free >= self.store_chunks {
            self.lost = Some("Invalid".to_owned());
            return Progress::Free;
        }
        let new = self.next_free;
        self.next_free += 1;
        if self.next_free % (PER_AREA + 1) == 1 {
            self.next_free += 1;
        }
        self.pending += 1;
        self.turns += 1;
        Progress::Prepared {
            new,
            turn: self.turns - 1,
        }
    }

    fn commit(&mut self, chunk: u64, new: u64) -> Progress {
        self.turn += 1;
        let entry = at(self.committed * 16);
        self.memory[entry..entry + 8].copy_from_slice(&chunk.to_le_bytes());
        self.memory[entry + 8..entry + 16].copy_from_slice(&new.to_le_bytes());
        self.committed += 1;
        self.entered.push((chunk, new));
        self.pending -= 1;
        if self.pending > 0 && self.committed < PER_AREA {
            return Progress::Logged;
        }
        if self.committed == PER_AREA {
            self.wipe_next_area();
        }
        // The order in which a disk writes the sectors is its own: the worst one here.
        self.unwritten = (0..self.memory.len())
            .step_by(SECTOR)
            .filter(|s| self.is_unwritten(*s))
            .collect();
        Progress::Writing
    }

    fn wipe_next_area(&mut self) {
        let next = 1 + (self.area + 1) * (PER_AREA + 1);
        if next < self.store_chunks {
            let start = at(self.store_at(next));
            self.lun[start..start + at(CHUNK)].fill(0);
        }
    }

    fn area_at(&self) -> usize {
        at(self.store_at(1 + self.area * (PER_AREA + 1)))
    }

    fn is_unwritten(&self, sector: usize) -> bool {
        let start = self.area_at() + sector;
        self.lun[start..start + SECTOR] != self.memory[sector..sector + SECTOR]
    }

    fn write_sector(&mut self) {
        let sector = self.unwritten.pop().expect("sectors are left");
        let start = self.area_at() + sector;
        let bytes = self.memory[sector..sector + SECTOR].to_owned();
        self.lun[start..start + SECTOR].copy_from_slice(&bytes);
    }

    fn entries_are_written(&mut self) {
        self.copied.append(&mut self.entered);
        for writer in &mut self.writers {
            if writer.progress == Progress::Logged {
                writer.progress = Progress::Free;
            }
        }
        if self.committed == PER_AREA {
            self.committed = 0;
            self.area += 1;
            self.memory.fill(0);
        }
    }
}

fn store(kind: StoreKind, name: &str, size: u64, below: Below) -> Store {
    Store {
        kind,
        identity: Identity::new("id", name).unwrap(),
        label: name.to_owned(),
        size,
        block_size: None,
        below,
    }
}

impl Snapshot for World {
    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        Ok(FreeSpace::of_runs(self.inner().chunks * CHUNK, &[]))
    }

    fn sample(&self) -> std::io::Result<Sample> {
        let mut inner = self.point();
        inner.samples += 1;
        Ok(match &inner.lost {
            Some(status) => Sample::Lost(status.clone()),
            None => Sample::Allocated(inner.next_free * CHUNK / 512),
        })
    }

    fn read_store(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        assert!(
            offset.is_multiple_of(4096) && buf.len().is_multiple_of(4096),
            "past the page cache"
        );
        let inner = self.point();
        let start = at(inner.chunks * CHUNK + offset);
        let bytes = inner.lun.get(start..start + buf.len());
        buf.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Whole chunks only.
    fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        for (chunk, part) in (offset / CHUNK..).zip(buf.chunks_mut(at(CHUNK))) {
            let inner = self.point();
            // The kernel has readers and writers of a chunk wait for each other; of a lost snapshot nothing is promised.
            let place = inner
                .complete(chunk)
                .map_or(chunk * CHUNK, |new| inner.store_at(new));
            part.copy_from_slice(&inner.lun[at(place)..at(place + CHUNK)]);
        }
        // The device may change before the copy is looked at.
        drop(self.point());
        Ok(())
    }

    fn survey(&self) -> Result<Survey, FrozenError> {
        let mut inner = self.inner();
        inner.surveys += 1;
        let ground = inner.ground;
        if ground.is_some() {
            inner.witness = Ok(());
        }
        let (size, store_size) = (inner.chunks * CHUNK, inner.store_chunks * CHUNK);
        drop(inner);
        let mut graph = StoreGraph::new();
        let (name, below) = match ground {
            Some(name) => (name, Below::Disk),
            None => ("dark", Below::Opaque("on its way".to_owned())),
        };
        let disk = graph.add(store(StoreKind::Disk, name, size + store_size, below));
        let on_disk = |len, offset| {
            let range = ByteRange::new(0, len).unwrap();
            let below = Place { store: disk, offset };
            Below::Segments(vec![Segment { range, below }])
        };
        let origin = graph.add(store(StoreKind::DeviceMapper, "real", size, on_disk(size, 0)));
        let store = graph.add(store(
            StoreKind::DeviceMapper,
            "cow",
            store_size,
            on_disk(store_size, size),
        ));
        let world = self.clone();
        Ok(Survey {
            graph,
            origin,
            store,
            witness: Box::new(move || world.inner().witness.clone()),
        })
    }

    fn origin(&self) -> DeviceNumber {
        self.inner().origin
    }

    fn remove(&self) {
        self.inner().removed += 1;
    }
}
