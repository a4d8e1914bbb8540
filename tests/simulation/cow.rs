//! The real copy-before-write, on an origin and a copy area in memory.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use volmap::cow::{CopyOptions, CopyUnit, CowError, Ground, Origin, Survey, Witness};
use volmap::frozen::Attestation;
use volmap::generation::GenerationClock;
use volmap::limits::{COPY_AREA_HEADER, COPY_UNIT};
use volmap::range::ByteRange;
use volmap::storage::{Backing, Standing};
use volmap::store::StoreGraph;

use crate::dice::Dice;
use crate::disk::{Disk, Layout};
use crate::medium::{Flaw, Medium, PAGE};
use crate::world::{Frozen, Volume, World};

/// What a volume is longer by than its whole units.
const ODD_END: u64 = 777;
/// Units of so many bytes, and whole ones of a volume at most. Each moves once for a frozen image: where there are many, a proxy meets
/// with moves as long as it reads.
const UNITS: [(u64, u64); 3] = [(PAGE, 40), (4 * PAGE, 12), (COPY_UNIT, 3)];
/// No volume is longer.
const SIZE_MAX: u64 = 4 * COPY_UNIT;
/// Frozen images that stand side by side.
const IMAGES_MAX: usize = 3;

pub(crate) struct CowVolume {
    live: Arc<Origin>,
    unit: u64,
    size: u64,
    /// How often in 40 turns somebody writes.
    writes: u64,
    /// How often somebody comes past us: one in so many turns that are his.
    intrusions: u64,
    origin: Medium,
    /// What the origin must hold.
    expected: Arc<Mutex<Vec<u8>>>,
    /// Units that writers under way are at.
    in_flight: Mutex<Vec<ByteRange>>,
    /// A freeze or thaw holds the gate.
    gate_held: Arc<AtomicBool>,
    freezing: AtomicBool,
    /// How many have the origin open, past us.
    intruders: AtomicU32,
    standing: Arc<Mutex<Standing>>,
    /// Oldest first.
    images: Mutex<Vec<Frozen>>,
}

/// Disks for it: the copy area lies on the second, if there is one.
pub(crate) fn disks(dice: &Dice) -> Vec<Disk> {
    let room = (SIZE_MAX + COPY_AREA_HEADER + SIZE_MAX + COPY_UNIT) * 2;
    let mut disks = vec![Disk::new("lun0", room.next_multiple_of(COPY_UNIT))];
    if dice.one_in(3) {
        disks.push(Disk::new("lun1", room.next_multiple_of(COPY_UNIT)));
    }
    disks
}

impl CowVolume {
    pub(crate) fn new(
        world: &Weak<World>,
        dice: &Dice,
        disks: &[Arc<Disk>],
        [of_origin, of_copy_area]: [Flaw; 2],
    ) -> Self {
        let (unit, most) = UNITS[dice.roll(UNITS.len() as u64) as usize];
        let whole = most - dice.roll(most / 2);
        let size = whole * unit + ODD_END;
        let piece = [PAGE, 4 * PAGE, COPY_UNIT][dice.roll(3) as usize];
        let pieces = |disk: &Disk| {
            (0..disk.size() / piece)
                .map(|index| index * piece)
                .collect::<Vec<u64>>()
        };
        let mut free = pieces(&disks[0]);
        let layout = Layout::scattered(dice, piece, size, &mut free);
        let origin = Medium::new(world.clone(), Arc::clone(&disks[0]), layout, size, of_origin);
        let copy_disk = disks.last().unwrap();
        let mut free = if disks.len() > 1 { pieces(copy_disk) } else { free };
        // Room for every unit of the volume; where there is less it runs full now and then.
        let slots = if dice.one_in(3) { whole / 2 + 1 } else { whole + 1 };
        let room = COPY_AREA_HEADER + slots * unit;
        let layout = Layout::scattered(dice, piece, room, &mut free);
        let copy_area = Medium::new(world.clone(), Arc::clone(copy_disk), layout, room, of_copy_area);

        let expected = Arc::new(Mutex::new(vec![0; size as usize]));
        for page in 0..size.div_ceil(PAGE) {
            if !dice.one_in(5) {
                let len = PAGE.min(size - page * PAGE) as usize;
                let bytes = pattern(dice, len);
                origin.poke(page * PAGE, &bytes);
                expected.lock().unwrap()[(page * PAGE) as usize..][..len].copy_from_slice(&bytes);
            }
        }
        let standing = Arc::new(Mutex::new(Standing::Good));
        let ground = MemoryGround {
            world: world.clone(),
            origin: origin.clone(),
            copy_area: copy_area.clone(),
            standing: Arc::clone(&standing),
        };
        let clock = Arc::new(GenerationClock::start().unwrap());
        let live = Origin::with_backings(
            Box::new(origin.clone()),
            Box::new(copy_area),
            Box::new(ground),
            clock,
            CopyOptions {
                unit: CopyUnit::new(unit).unwrap(),
                // No deadline passes because the machine stands still, and no sync seems long because it is slow.
                window_max: Duration::from_secs(3600),
                ready_max: Duration::from_secs(3600),
                sync_ahead_enough: Duration::MAX,
                ..CopyOptions::default()
            },
        );
        Self {
            live: live.unwrap(),
            unit,
            size,
            writes: [1, 4, 10][dice.roll(3) as usize],
            intrusions: [400, 40, 4][dice.roll(3) as usize],
            origin,
            expected,
            in_flight: Mutex::default(),
            gate_held: Arc::default(),
            freezing: AtomicBool::new(false),
            intruders: AtomicU32::new(0),
            standing,
            images: Mutex::default(),
        }
    }

    /// Where something is done: as often as not where somebody reads at this moment.
    fn somewhere(&self, world: &World) -> u64 {
        let dice = &world.dice;
        if dice.one_in(2)
            && let Some(range) = world.wire.asked_for(dice)
        {
            return range.start() + dice.roll(range.len());
        }
        match dice.roll(3) {
            0 => dice.roll(self.size),
            1 => dice.roll(self.size.div_ceil(PAGE)) * PAGE,
            _ => (dice.roll(self.size.div_ceil(self.unit)) * self.unit).saturating_sub(dice.roll(3)),
        }
    }

    fn write(&self, world: &World) -> bool {
        let dice = &world.dice;
        let offset = self.somewhere(world);
        let longest = [16, PAGE, self.unit, 2 * self.unit][dice.roll(4) as usize];
        let len = (1 + dice.roll(longest)).min(self.size - offset);
        let range = ByteRange::new(offset, len).unwrap();
        let units = range.align_outward(self.unit).unwrap();
        {
            let mut in_flight = self.in_flight.lock().unwrap();
            // Another writer of the unit would wait for the one that is called from here.
            let waits = in_flight.iter().any(|other| other.intersection(units).is_some());
            if waits || self.gate_held.load(Ordering::Relaxed) {
                return false;
            }
            in_flight.push(units);
        }
        world.note("a write begins at", offset);
        let bytes = match dice.roll(6) {
            0 => {
                self.live.trim(offset, len, false).unwrap();
                vec![0; len as usize]
            }
            1 => {
                self.live
                    .write_zeroes(offset, len, dice.one_in(2), false)
                    .unwrap();
                vec![0; len as usize]
            }
            _ => {
                let bytes = pattern(dice, len as usize);
                self.live.write_at(offset, &bytes, false).unwrap();
                bytes
            }
        };
        world.note("a write ends at", offset);
        self.expected.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        self.in_flight.lock().unwrap().retain(|other| *other != units);
        true
    }

    /// Somebody breaks the leases, and then writes past us.
    fn intrude(&self, world: &World) {
        world.note("an intruder comes", 0);
        *self.standing.lock().unwrap() = Standing::ContentLost("an intruder".into());
        self.intruders.fetch_add(1, Ordering::Relaxed);
        for frozen in &*self.images.lock().unwrap() {
            frozen.ended.store(true, Ordering::Relaxed);
        }
        world.turn();
        let page = self.somewhere(world).min(self.size - ODD_END - 1) / PAGE * PAGE;
        let bytes = vec![0x0E; PAGE as usize];
        self.origin.poke(page, &bytes);
        self.expected.lock().unwrap()[page as usize..][..bytes.len()].copy_from_slice(&bytes);
        self.intruders.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that are nowhere else, and never zero.
fn pattern(dice: &Dice, len: usize) -> Vec<u8> {
    let word = (dice.roll(u64::MAX) | 0x0101_0101_0101_0101).to_le_bytes();
    let mut bytes = word.repeat(len.div_ceil(8));
    bytes.truncate(len);
    bytes
}

impl Volume for CowVolume {
    fn act(&self, world: &World) -> bool {
        let frozen = !self.images.lock().unwrap().is_empty();
        match world.dice.roll(40) {
            0 if frozen
                && world.dice.one_in(self.intrusions)
                && self.in_flight.lock().unwrap().is_empty() =>
            {
                self.intrude(world)
            }
            1 if frozen && world.dice.one_in(20) => {
                let mut standing = self.standing.lock().unwrap();
                if *standing == Standing::Good {
                    *standing = Standing::MappingLost("somebody looked".into());
                }
            }
            turn if turn < self.writes => return self.write(world),
            36..40 => self.origin.write_back_one(world.dice.roll(1 << 20)),
            _ => return false,
        }
        true
    }

    fn settle(&self, world: &World) -> bool {
        self.origin.write_back_one(world.dice.roll(1 << 20));
        true
    }

    fn freeze(&self, world: &World) -> Option<Frozen> {
        // No lease is given for what somebody else has open, and no freeze begins without.
        if self.intruders.load(Ordering::Relaxed) > 0
            || self.freezing.load(Ordering::Relaxed)
            || !self.in_flight.lock().unwrap().is_empty()
            || self.gate_held.swap(true, Ordering::Relaxed)
        {
            return None;
        }
        // Writers go on while most of what is dirty is synced ahead: until the first sync has ended, and a little longer.
        self.origin.at_the_next_sync(&self.gate_held);
        // A guard that was lost is good again when no earlier image stands.
        let is_good = *self.standing.lock().unwrap() == Standing::Good;
        let mut images = std::mem::take(&mut *self.images.lock().unwrap());
        let kept = if is_good {
            world.dice.roll(IMAGES_MAX as u64) as usize
        } else {
            0
        };
        let thawed = images.len().saturating_sub(kept);
        // Nobody can connect to the earlier ones any more.
        for earlier in &images {
            earlier.ended.store(true, Ordering::Relaxed);
        }
        for earlier in images.drain(..thawed) {
            world.note("thaw", 0);
            earlier.image.thaw();
        }
        self.gate_held.store(false, Ordering::Relaxed);
        self.freezing.store(true, Ordering::Relaxed);
        let image = self.live.freeze().unwrap();
        self.freezing.store(false, Ordering::Relaxed);
        let mut live = vec![0; self.size as usize];
        self.origin.peek(0, &mut live);
        let bytes = self.expected.lock().unwrap().clone();
        assert!(live == bytes, "the origin holds what was written to it");
        let frozen = Frozen {
            image,
            bytes: Arc::new(bytes),
            ended: Arc::new(AtomicBool::new(false)),
        };
        images.push(frozen.clone());
        *self.images.lock().unwrap() = images;
        self.gate_held.store(false, Ordering::Relaxed);
        Some(frozen)
    }

    /// What is in memory is gone with the agent.
    fn restart(&self, _: &World) -> bool {
        false
    }

    fn is_lost(&self) -> bool {
        matches!(*self.standing.lock().unwrap(), Standing::ContentLost(_))
    }
}

struct MemoryGround {
    world: Weak<World>,
    origin: Medium,
    copy_area: Medium,
    standing: Arc<Mutex<Standing>>,
}

impl Ground for MemoryGround {
    fn survey(&self, alone: bool) -> Result<Survey, CowError> {
        let mut graph = StoreGraph::new();
        let mut add = |medium: &Medium, name| {
            let disk = medium.disk().store(&mut graph);
            medium.layout().store(&mut graph, disk, name, medium.size())
        };
        let copy_area = add(&self.copy_area, "copy");
        let origin = add(&self.origin, "origin");
        let origin_was_open = alone && {
            let mut standing = self.standing.lock().unwrap();
            std::mem::replace(&mut *standing, Standing::Good) != Standing::Good
        };
        Ok(Survey {
            graph,
            content: self.origin.content(),
            origin: Some(origin),
            copy_area: Some(copy_area),
            attestation: Attestation::Witnessed,
            witness: Box::new(Told {
                world: self.world.clone(),
                standing: Arc::clone(&self.standing),
            }),
            origin_was_open,
        })
    }
}

struct Told {
    world: Weak<World>,
    standing: Arc<Mutex<Standing>>,
}

impl Witness for Told {
    fn check(&self) -> Standing {
        let turn = || self.world.upgrade().iter().for_each(|world| world.turn());
        turn();
        let standing = self.standing.lock().unwrap().clone();
        turn();
        standing
    }
}
