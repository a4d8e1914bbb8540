//! A model of a snapshot of the kernel (dm-snapshot), and of a host that follows its log.
//!
//! A first write to a chunk is counted in the live status, copied, recorded in the log (in order, several at a time), and only then
//! does it go to the origin. The host's map is the log that it read; a question is answered from a log that is at least as
//! long as the status says that was asked after the question came.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use volmap::frozen::{Description, FrozenError, FrozenImage, Stability, Status};
use volmap::generation::{Generation, GenerationClock};
use volmap::range::ByteRange;
use volmap::store::{Place, StoreGraph, StoreId};

use crate::dice::Dice;
use crate::disk::{Disk, Layout};
use crate::image;
use crate::world::{Frozen, Volume, World};

const CHUNK: u64 = 4096;
const CHUNKS: u64 = 14;
/// Exceptions that the store has room for at most; where there are fewer it overflows.
const SLOTS: u64 = CHUNKS;
/// A volume with an odd end.
const SIZE: u64 = CHUNKS * CHUNK - 100;

pub(crate) fn disks(_: &Dice) -> Vec<Disk> {
    vec![Disk::new("lun0", (CHUNKS + SLOTS) * 2 * CHUNK)]
}

/// A copy that was counted and is not recorded yet.
struct Pending {
    chunk: u64,
    is_copied: bool,
}

/// The kernel's side.
#[derive(Default)]
struct Kernel {
    /// Whether there is a snapshot.
    is_active: bool,
    pending: Vec<Pending>,
    /// Chunks in the order of their slots.
    log: Vec<u64>,
    is_overflown: bool,
    /// Writers that wait for the record of a chunk.
    waiting: Vec<u64>,
}

struct Store {
    disk: Arc<Disk>,
    origin: Layout,
    exceptions: Layout,
    kernel: Mutex<Kernel>,
    world: Weak<World>,
    slots: usize,
    /// The host takes the number in the live status for the length of its log: the mistake that law H4 is about.
    trusts_the_status: bool,
}

pub(crate) struct SnapshotVolume {
    store: Arc<Store>,
    expected: Mutex<Vec<u8>>,
    last: Mutex<Option<(Frozen, Arc<SnapshotImage>)>>,
    images: AtomicU64,
}

impl Store {
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap()
    }

    fn turn(&self) {
        if let Some(world) = self.world.upgrade() {
            world.turn();
        }
    }

    /// The kernel goes on with some copy: copies it, or records those that are copied, the oldest first.
    fn go_on(&self, dice: &Dice) -> bool {
        let mut kernel = self.kernel();
        let open: Vec<usize> = (0..kernel.pending.len())
            .filter(|&i| !kernel.pending[i].is_copied)
            .collect();
        if let Some(&index) = dice.pick(&open)
            && !dice.one_in(3)
        {
            let (chunk, slot) = (kernel.pending[index].chunk, kernel.log.len() + index);
            let mut old = vec![0; CHUNK as usize];
            self.disk.read(self.origin.place(chunk * CHUNK), &mut old);
            self.disk.write(self.exceptions.place(slot as u64 * CHUNK), &old);
            kernel.pending[index].is_copied = true;
            return true;
        }
        let ready = kernel
            .pending
            .iter()
            .take_while(|pending| pending.is_copied)
            .count();
        let recorded = dice.roll(ready as u64 + 1) as usize;
        let done: Vec<u64> = kernel
            .pending
            .drain(..recorded)
            .map(|pending| pending.chunk)
            .collect();
        kernel.log.extend(&done);
        !done.is_empty()
    }
}

impl SnapshotVolume {
    pub(crate) fn new(
        world: &Weak<World>,
        dice: &Dice,
        disks: &[Arc<Disk>],
        trusts_the_status: bool,
    ) -> Self {
        let disk = Arc::clone(&disks[0]);
        let mut free: Vec<u64> = (0..disk.size() / CHUNK).map(|index| index * CHUNK).collect();
        let origin = Layout::scattered(dice, CHUNK, CHUNKS * CHUNK, &mut free);
        let exceptions = Layout::scattered(dice, CHUNK, SLOTS * CHUNK, &mut free);
        let volume = Self {
            store: Arc::new(Store {
                disk,
                origin,
                exceptions,
                kernel: Mutex::default(),
                world: world.clone(),
                slots: if dice.one_in(4) {
                    SLOTS as usize - 3
                } else {
                    SLOTS as usize
                },
                trusts_the_status,
            }),
            expected: Mutex::new(vec![0; SIZE as usize]),
            last: Mutex::new(None),
            images: AtomicU64::new(0),
        };
        for chunk in 0..CHUNKS {
            volume.overwrite(dice, chunk);
        }
        volume
    }

    fn overwrite(&self, dice: &Dice, chunk: u64) {
        let word = (dice.roll(u64::MAX) | 0x0101_0101_0101_0101).to_le_bytes();
        let bytes = word.repeat(CHUNK as usize / 8);
        self.store
            .disk
            .write(self.store.origin.place(chunk * CHUNK), &bytes);
        let start = (chunk * CHUNK) as usize;
        let end = (start + CHUNK as usize).min(SIZE as usize);
        self.expected.lock().unwrap()[start..end].copy_from_slice(&bytes[..end - start]);
    }

    /// A writer comes with a chunk.
    fn write(&self, world: &World) {
        let chunk = world.dice.roll(CHUNKS);
        let goes_on = {
            let mut kernel = self.store.kernel();
            let kernel = &mut *kernel;
            if !kernel.is_active || kernel.is_overflown || kernel.log.contains(&chunk) {
                true
            } else {
                let begun = kernel.log.len() + kernel.pending.len();
                if kernel.pending.iter().all(|pending| pending.chunk != chunk) {
                    if begun == self.store.slots {
                        // The origin goes on, the snapshot is invalid.
                        kernel.is_overflown = true;
                        kernel.pending.clear();
                    } else {
                        kernel.pending.push(Pending {
                            chunk,
                            is_copied: false,
                        });
                    }
                }
                if !kernel.is_overflown {
                    kernel.waiting.push(chunk);
                }
                kernel.is_overflown
            }
        };
        if goes_on {
            world.note("a chunk is written", chunk);
            self.overwrite(&world.dice, chunk);
        } else {
            world.note("a copy is counted", chunk);
        }
    }

    /// A writer whose chunk is recorded goes to the origin.
    fn let_one_in(&self, world: &World) -> bool {
        let ready = {
            let mut kernel = self.store.kernel();
            let kernel = &mut *kernel;
            let is_ready = |chunk: &u64| kernel.is_overflown || kernel.log.contains(chunk);
            let found = kernel.waiting.iter().position(is_ready);
            found.map(|index| kernel.waiting.remove(index))
        };
        match ready {
            Some(chunk) => {
                world.note("a chunk is written after its copy", chunk);
                self.overwrite(&world.dice, chunk);
                true
            }
            None => false,
        }
    }
}

impl Volume for SnapshotVolume {
    fn act(&self, world: &World) -> bool {
        match world.dice.roll(40) {
            0 => {
                self.write(world);
                true
            }
            1..4 => self.let_one_in(world),
            4..8 => self.store.go_on(&world.dice),
            _ => false,
        }
    }

    fn settle(&self, world: &World) -> bool {
        self.store.go_on(&world.dice) | self.let_one_in(world)
    }

    fn freeze(&self, world: &World) -> Option<Frozen> {
        // The device is suspended for it: nothing is in flight.
        while self.settle(world) || !self.store.kernel().waiting.is_empty() {}
        if let Some((earlier, image)) = self.last.lock().unwrap().take() {
            earlier.ended.store(true, Ordering::Relaxed);
            image.is_thawed.store(true, Ordering::Relaxed);
        }
        *self.store.kernel() = Kernel {
            is_active: true,
            ..Kernel::default()
        };
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let image = Arc::new(SnapshotImage::new(Arc::clone(&self.store), number));
        let frozen = Frozen {
            image: image.clone(),
            bytes: Arc::new(self.expected.lock().unwrap().clone()),
            ended: Arc::new(AtomicBool::new(false)),
        };
        *self.last.lock().unwrap() = Some((frozen.clone(), image));
        Some(frozen)
    }

    fn restart(&self, _: &World) -> bool {
        let image = self
            .last
            .lock()
            .unwrap()
            .as_ref()
            .map(|(_, image)| Arc::clone(image));
        image.is_some_and(|image| {
            *image.stamps.lock().unwrap() = Stamps::start();
            true
        })
    }

    fn is_lost(&self) -> bool {
        self.store.kernel().is_overflown
    }
}

/// Generations of one start of the agent: of the origin, and of each exception.
struct Stamps {
    clock: GenerationClock,
    first: Generation,
    exceptions: BTreeMap<u64, Generation>,
}

impl Stamps {
    fn start() -> Self {
        let clock = GenerationClock::start().unwrap();
        let first = clock.next();
        Self {
            clock,
            first,
            exceptions: BTreeMap::new(),
        }
    }
}

struct SnapshotImage {
    description: Description,
    store: Arc<Store>,
    graph: Arc<StoreGraph>,
    origin: StoreId,
    exceptions: StoreId,
    stamps: Mutex<Stamps>,
    is_thawed: AtomicBool,
}

impl SnapshotImage {
    fn new(store: Arc<Store>, number: u64) -> Self {
        let mut graph = StoreGraph::new();
        let disk = store.disk.store(&mut graph);
        let origin = store.origin.store(&mut graph, disk, "real", CHUNKS * CHUNK);
        let exceptions = store.exceptions.store(&mut graph, disk, "cow", SLOTS * CHUNK);
        Self {
            description: image::description("model", Stability::Moves, number),
            store,
            graph: Arc::new(graph),
            origin,
            exceptions,
            stamps: Mutex::new(Stamps::start()),
            is_thawed: AtomicBool::new(false),
        }
    }
}

impl FrozenImage for SnapshotImage {
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
        let begun = {
            let kernel = self.store.kernel();
            kernel.log.len() + kernel.pending.len()
        };
        // The log is read until it is as long as the status said.
        let log = loop {
            self.stands()?;
            self.store.turn();
            let log = self.store.kernel().log.clone();
            if log.len() >= begun || self.store.trusts_the_status {
                break log;
            }
            if let Some(world) = self.store.world.upgrade() {
                self.store.go_on(&world.dice);
            }
        };
        let mut stamps = self.stamps.lock().unwrap();
        let Stamps {
            clock,
            first,
            exceptions,
        } = &mut *stamps;
        for chunk in &log {
            exceptions.entry(*chunk).or_insert_with(|| clock.next());
        }
        let of_the_status = *exceptions
            .entry(CHUNKS + begun as u64)
            .or_insert_with(|| clock.next());
        let extents = image::answer(range, limit, CHUNK, |chunk| {
            let slot = log.iter().position(|moved| *moved == chunk);
            let (store, offset) = match slot {
                Some(slot) => (self.exceptions, slot as u64 * CHUNK),
                None => (self.origin, chunk * CHUNK),
            };
            let generation = match slot {
                _ if self.store.trusts_the_status => of_the_status,
                Some(_) => exceptions[&chunk],
                None => *first,
            };
            (generation, Some(Place { store, offset }))
        });
        drop(stamps);
        self.stands()?;
        Ok(Status {
            graph: self.graph(),
            extents,
        })
    }

    fn stands(&self) -> Result<(), FrozenError> {
        if self.is_thawed.load(Ordering::Relaxed) || self.store.kernel().is_overflown {
            return Err(FrozenError::Gone("no snapshot any more".into()));
        }
        Ok(())
    }

    /// The kernel holds back writers of what is being read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        self.store.turn();
        {
            let kernel = self.store.kernel();
            image::each_chunk(CHUNK, offset, buf, |chunk, within, part| {
                let slot = kernel.log.iter().position(|moved| *moved == chunk);
                let place = match slot {
                    Some(slot) => self.store.exceptions.place(slot as u64 * CHUNK),
                    None => self.store.origin.place(chunk * CHUNK),
                };
                self.store.disk.read(place + within, part);
            });
        }
        self.store.turn();
        self.stands()
    }

    fn thaw(&self) {
        self.is_thawed.store(true, Ordering::Relaxed);
    }
}
