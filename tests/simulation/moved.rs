//! A model of a volume that lies still until somebody moves it: pvmove under it, or a balance of its file system; and of a lease that is
//! broken by a writer.
//!
//! A move copies a chunk to a spare place, switches the table, and gives the old place to somebody else. What the host answers from
//! is the table as it is now, each version of it with a generation of its own; a host that cannot map again answers that
//! nothing is direct any more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use volmap::frozen::{Description, FrozenError, FrozenImage, Stability, Status};
use volmap::generation::{Generation, GenerationClock};
use volmap::range::ByteRange;
use volmap::store::{Place, StoreGraph, StoreId};

use crate::dice::Dice;
use crate::disk::Disk;
use crate::image;
use crate::world::{Frozen, Volume, World};

const CHUNK: u64 = 2048;
const CHUNKS: u64 = 20;
const SPARE: u64 = 6;
const SIZE: u64 = CHUNKS * CHUNK - 3;

pub(crate) fn disks(_: &Dice) -> Vec<Disk> {
    vec![Disk::new("lun0", (CHUNKS + SPARE) * CHUNK)]
}

/// Where everything lies.
struct Table {
    /// Rises with every switch.
    version: u64,
    places: Vec<u64>,
    spare: Vec<u64>,
    moving: Option<Move>,
    /// Places that are free and not yet somebody else's.
    free: Vec<u64>,
    lease_broken: bool,
    /// How many writers have it open that broke the lease.
    intruders: u32,
}

struct Move {
    chunk: u64,
    to: u64,
}

struct Ground {
    disk: Arc<Disk>,
    table: Mutex<Table>,
    world: Weak<World>,
    /// Whether the host maps again what moved.
    maps_again: bool,
}

impl Ground {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap()
    }

    fn turn(&self) {
        if let Some(world) = self.world.upgrade() {
            world.turn();
        }
    }
}

pub(crate) struct MovedVolume {
    ground: Arc<Ground>,
    expected: Mutex<Vec<u8>>,
    last: Mutex<Option<(Frozen, Arc<MovedImage>)>>,
    images: AtomicU64,
}

impl MovedVolume {
    pub(crate) fn new(world: &Weak<World>, dice: &Dice, disks: &[Arc<Disk>]) -> Self {
        let disk = Arc::clone(&disks[0]);
        let mut spare: Vec<u64> = (0..CHUNKS + SPARE).map(|index| index * CHUNK).collect();
        let mut places = Vec::new();
        while places.len() < CHUNKS as usize {
            let index = dice.roll(spare.len() as u64) as usize;
            places.push(spare.remove(if dice.one_in(2) { 0 } else { index }));
        }
        let volume = Self {
            ground: Arc::new(Ground {
                disk,
                table: Mutex::new(Table {
                    version: 0,
                    places,
                    spare,
                    moving: None,
                    free: Vec::new(),
                    lease_broken: false,
                    intruders: 0,
                }),
                world: world.clone(),
                maps_again: !dice.one_in(3),
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

    /// A writer waits while something is moved.
    fn write(&self, world: &World) {
        if self.ground.table().moving.is_none() {
            self.overwrite(&world.dice, world.dice.roll(CHUNKS));
        }
    }

    fn overwrite(&self, dice: &Dice, chunk: u64) {
        let word = (dice.roll(u64::MAX) | 0x0101_0101_0101_0101).to_le_bytes();
        let bytes = word.repeat(CHUNK as usize / 8);
        let place = self.ground.table().places[chunk as usize];
        self.ground.disk.write(place, &bytes);
        let start = (chunk * CHUNK) as usize;
        let end = (start + CHUNK as usize).min(SIZE as usize);
        self.expected.lock().unwrap()[start..end].copy_from_slice(&bytes[..end - start]);
    }

    /// The mover, and whoever gets what it leaves.
    fn go_on(&self, world: &World, begins: bool) -> bool {
        let mut table = self.ground.table();
        let table = &mut *table;
        if let Some(Move { chunk, to }) = table.moving.take() {
            let old = std::mem::replace(&mut table.places[chunk as usize], to);
            table.version += 1;
            table.free.push(old);
            world.note("a table switches for chunk", chunk);
            return true;
        }
        if let Some(place) = table.free.pop() {
            self.ground.disk.write(place, &[0xF0; CHUNK as usize]);
            table.spare.push(place);
            world.note("somebody else has the place", place);
            return true;
        }
        if !begins || table.spare.is_empty() {
            return false;
        }
        let to = table
            .spare
            .remove(world.dice.roll(table.spare.len() as u64) as usize);
        let chunk = world.dice.roll(CHUNKS);
        let mut bytes = vec![0; CHUNK as usize];
        self.ground.disk.read(table.places[chunk as usize], &mut bytes);
        self.ground.disk.write(to, &bytes);
        table.moving = Some(Move { chunk, to });
        world.note("a move begins of chunk", chunk);
        true
    }
}

impl Volume for MovedVolume {
    fn act(&self, world: &World) -> bool {
        let frozen = self.last.lock().unwrap().is_some();
        match world.dice.roll(6) {
            // Nobody writes to what is frozen, but who breaks the lease first.
            0 if !frozen => self.write(world),
            0 if world.dice.one_in(400) => {
                world.note("a lease is broken", 0);
                {
                    let mut table = self.ground.table();
                    table.lease_broken = true;
                    table.intruders += 1;
                }
                world.turn();
                self.write(world);
                self.ground.table().intruders -= 1;
            }
            1 | 2 => return self.go_on(world, world.dice.one_in(3)),
            _ => return false,
        }
        true
    }

    fn settle(&self, world: &World) -> bool {
        self.go_on(world, false)
    }

    fn freeze(&self, world: &World) -> Option<Frozen> {
        // No lease is given for what somebody else has open for writing, and nothing is frozen without.
        if self.ground.table().intruders > 0 {
            return None;
        }
        while self.settle(world) {}
        if let Some((earlier, image)) = self.last.lock().unwrap().take() {
            earlier.ended.store(true, Ordering::Relaxed);
            image.is_thawed.store(true, Ordering::Relaxed);
        }
        self.ground.table().lease_broken = false;
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        self.write(world);
        let image = Arc::new(MovedImage::new(Arc::clone(&self.ground), number));
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
            *image.known.lock().unwrap() = Known::start(&self.ground.table());
            true
        })
    }

    fn is_lost(&self) -> bool {
        self.ground.table().lease_broken
    }
}

/// What the agent knows of the table.
struct Known {
    clock: GenerationClock,
    version: u64,
    generation: Generation,
}

impl Known {
    fn start(table: &Table) -> Self {
        let clock = GenerationClock::start().unwrap();
        let generation = clock.next();
        Self {
            clock,
            version: table.version,
            generation,
        }
    }
}

struct MovedImage {
    description: Description,
    ground: Arc<Ground>,
    graph: Arc<StoreGraph>,
    disk: StoreId,
    known: Mutex<Known>,
    is_thawed: AtomicBool,
}

impl MovedImage {
    fn new(ground: Arc<Ground>, number: u64) -> Self {
        let mut graph = StoreGraph::new();
        let disk = ground.disk.store(&mut graph);
        let known = Known::start(&ground.table());
        Self {
            description: image::description("model", Stability::Moves, number),
            ground,
            graph: Arc::new(graph),
            disk,
            known: Mutex::new(known),
            is_thawed: AtomicBool::new(false),
        }
    }
}

impl FrozenImage for MovedImage {
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
        self.ground.turn();
        let extents = {
            let table = self.ground.table();
            let mut known = self.known.lock().unwrap();
            let has_moved = known.version != table.version;
            if has_moved && self.ground.maps_again {
                known.version = table.version;
                known.generation = known.clock.next();
            }
            let is_direct = !has_moved || self.ground.maps_again;
            image::answer(range, limit, CHUNK, |chunk| {
                let place = is_direct.then_some(Place {
                    store: self.disk,
                    offset: table.places[chunk as usize],
                });
                (known.generation, place)
            })
        };
        self.ground.turn();
        self.stands()?;
        Ok(Status {
            graph: self.graph(),
            extents,
        })
    }

    fn stands(&self) -> Result<(), FrozenError> {
        if self.is_thawed.load(Ordering::Relaxed) || self.ground.table().lease_broken {
            return Err(FrozenError::Gone("the lease is broken".into()));
        }
        Ok(())
    }

    /// The file system knows where everything is at any instant.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        self.ground.turn();
        {
            let table = self.ground.table();
            image::each_chunk(CHUNK, offset, buf, |chunk, within, part| {
                self.ground.disk.read(table.places[chunk as usize] + within, part);
            });
        }
        self.ground.turn();
        self.stands()
    }

    fn thaw(&self) {
        self.is_thawed.store(true, Ordering::Relaxed);
    }
}
