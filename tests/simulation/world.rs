//! The world: who is in it, and whose turn it is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use volmap::frozen::FrozenImage;

use crate::backup::{Backup, Ending};
use crate::dice::Dice;
use crate::disk::Disk;
use crate::lun::Reads;
use crate::wire::Wire;

/// Calls within calls: a writer in the midst of a read of the host, another in the midst of that one.
const DEPTH_MAX: u32 = 3;
/// Steps of others in a long turn at most: enough for a proxy to ask, be answered and read.
const LONG_TURN: u64 = 60;
/// Bytes of a read in the host at most.
const READ_MAX: u64 = 3 << 14;
/// Steps after which nobody writes, moves or drops any more, so that what is under way comes to its end.
const LIVELY_STEPS: u64 = 6000;
/// Steps after which something hangs.
const STEPS_MAX: u64 = 200_000;
/// Backups in one run.
const BACKUPS: u64 = 4;
/// Events that are told when something is wrong.
const TOLD: usize = 120;

/// What is backed up: a volume with somebody who changes it, and frozen images of it.
pub(crate) trait Volume {
    /// Something small happens to it. `false`: nothing did.
    fn act(&self, world: &World) -> bool;

    /// The kernel goes on with what it has begun; nothing new happens.
    fn settle(&self, world: &World) -> bool;

    /// Ends the frozen image that there may be, and makes another. `None`: not now.
    fn freeze(&self, world: &World) -> Option<Frozen>;

    /// The agent of the host was killed and started again. `false`: the frozen image did not survive it.
    fn restart(&self, world: &World) -> bool;

    /// Whether somebody changed the content past every guard since the freeze.
    fn is_lost(&self) -> bool;
}

/// A frozen image, and what it must hold.
#[derive(Clone)]
pub(crate) struct Frozen {
    pub(crate) image: Arc<dyn FrozenImage>,
    pub(crate) bytes: Arc<Vec<u8>>,
    /// It was thawed, or its content was lost, or its copy area ran full.
    pub(crate) ended: Arc<AtomicBool>,
}

/// What one run came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) steps: u64,
    pub(crate) completed: u64,
    pub(crate) gone: u64,
    pub(crate) lost: u64,
    pub(crate) batches: u64,
    pub(crate) direct: u64,
    pub(crate) nbd: u64,
    pub(crate) host: u64,
    pub(crate) moved: u64,
    pub(crate) remapped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.completed += other.completed;
        self.gone += other.gone;
        self.lost += other.lost;
        self.batches += other.batches;
        self.direct += other.direct;
        self.nbd += other.nbd;
        self.host += other.host;
        self.moved += other.moved;
        self.remapped += other.remapped;
    }
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) disks: Vec<Arc<Disk>>,
    pub(crate) wire: Wire,
    pub(crate) reads: Reads,
    volume: OnceLock<Box<dyn Volume + Send + Sync>>,
    frozen: Mutex<Option<Frozen>>,
    backups: Mutex<Vec<Backup>>,
    begun: AtomicU64,
    depth: AtomicU32,
    steps: AtomicU64,
    counts: Mutex<Counts>,
    events: Mutex<VecDeque<(u64, u32, &'static str, u64)>>,
    /// How eager those in the world are: one in so many turns is taken.
    pace: u64,
    /// One in so many steps a connection drops.
    drops: u64,
    /// One in so many steps something greater happens.
    changes: u64,
}

impl World {
    /// A world with a volume that `make` puts on its disks.
    pub(crate) fn new<V: Volume + Send + Sync + 'static>(
        seed: u64,
        disks: Vec<Disk>,
        make: impl FnOnce(&Weak<Self>, &Dice, &[Arc<Disk>]) -> V,
    ) -> Arc<Self> {
        let dice = Dice::new(seed);
        let disks: Vec<Arc<Disk>> = disks.into_iter().map(Arc::new).collect();
        let (pace, drops) = (1 + dice.roll(6), [60, 400, 100_000][dice.roll(3) as usize]);
        let changes = [1500, 1500, 200][dice.roll(3) as usize];
        Arc::new_cyclic(|weak| {
            let volume = make(weak, &dice, &disks);
            Self {
                dice,
                disks,
                wire: Wire::default(),
                reads: Reads::default(),
                volume: OnceLock::from(Box::new(volume) as Box<dyn Volume + Send + Sync>),
                frozen: Mutex::new(None),
                backups: Mutex::default(),
                begun: AtomicU64::new(0),
                depth: AtomicU32::new(0),
                steps: AtomicU64::new(0),
                counts: Mutex::default(),
                events: Mutex::default(),
                pace,
                drops,
                changes,
            }
        })
    }

    fn volume(&self) -> &dyn Volume {
        &**self.volume.get().unwrap()
    }

    /// Notes what happens, for when something goes wrong.
    pub(crate) fn note(&self, event: &'static str, number: u64) {
        let mut events = self.events.lock().unwrap();
        if events.len() == TOLD {
            events.pop_front();
        }
        events.push_back((
            self.steps.load(Ordering::Relaxed),
            self.depth.load(Ordering::Relaxed),
            event,
            number,
        ));
    }

    /// What happened last.
    pub(crate) fn tell(&self) {
        for (step, depth, event, number) in self.events.lock().unwrap().iter() {
            println!(
                "{step:>7} {:indent$}{event} {number}",
                "",
                indent = *depth as usize * 2
            );
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// In the midst of somebody's call: others may act.
    pub(crate) fn turn(&self) {
        if self.depth() > DEPTH_MAX || !self.dice.one_in(self.pace) {
            return;
        }
        // Now and then long enough for a proxy to ask, be answered and read.
        let is_long = self.depth() == 0 && self.dice.one_in(8);
        self.others(if is_long { LONG_TURN } else { 3 });
    }

    /// The same, where what others do matters most: now and then for long, whoever has let others act before.
    pub(crate) fn linger(&self) {
        if self.depth() <= DEPTH_MAX && self.dice.one_in(4) {
            self.others(LONG_TURN);
        }
    }

    fn others(&self, longest: u64) {
        self.depth.fetch_add(1, Ordering::Relaxed);
        for _ in 0..=self.dice.roll(longest) {
            self.step();
        }
        self.depth.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_lively(&self) -> bool {
        self.steps.load(Ordering::Relaxed) < LIVELY_STEPS
    }

    /// One step of somebody.
    fn step(&self) {
        // What was ready while the proxy was busy is found sooner or later.
        if self.steps.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
            self.poll();
        }
        let lively = self.is_lively();
        if lively && self.dice.one_in(self.drops) && self.wire.drop_one(&self.dice) {
            self.note("a connection drops", 0);
            self.poll();
            return;
        }
        match self.dice.roll(20) {
            0..5 if lively => {
                self.volume().act(self);
            }
            0..5 => {
                self.volume().settle(self);
            }
            5..10 => {
                self.wire.handle_one(&self.dice);
            }
            10..15 => {
                if self.wire.deliver_one(&self.dice) {
                    self.poll();
                }
            }
            15..19 => {
                if self.reads.progress_one(&self.dice) {
                    self.poll();
                }
            }
            _ => self.read_in_the_host(),
        }
        if lively && self.dice.one_in(self.changes) {
            self.change();
        }
    }

    /// Somebody in the host reads a frozen image, and not through its export, which has a check of its own (law H5).
    fn read_in_the_host(&self) {
        let Some(frozen) = self.frozen.lock().unwrap().clone() else {
            return;
        };
        let size = frozen.bytes.len() as u64;
        let start = self.dice.roll(size);
        let len = 1 + self.dice.roll((size - start).min(READ_MAX));
        let mut bytes = vec![0; len as usize];
        match frozen.image.read_at(start, &mut bytes) {
            Ok(()) => {
                let expected = &frozen.bytes[start as usize..][..bytes.len()];
                assert!(bytes == expected, "a stale byte is read in the host at {start}");
                self.count(|counts| counts.host += len);
            }
            Err(_) => assert!(
                self.may_be_gone(&frozen),
                "a read in the host fails for no reason"
            ),
        }
    }

    /// Something greater happens: another frozen image, another agent, another backup.
    fn change(&self) {
        match self.dice.roll(4) {
            0 => self.freeze(),
            1 => {
                let is_frozen = self.frozen.lock().unwrap().is_some();
                if is_frozen && self.volume().restart(self) {
                    self.note("the agent starts again", 0);
                    self.wire.drop_all(&self.dice);
                    self.poll();
                }
            }
            _ => self.begin(),
        }
    }

    /// The earlier frozen image ends with the next.
    pub(crate) fn freeze(&self) {
        if let Some(frozen) = self.volume().freeze(self) {
            self.note("frozen", 0);
            self.wire.publish(Some(crate::image::publish(&frozen)));
            *self.frozen.lock().unwrap() = Some(frozen);
        }
    }

    /// A backup begins.
    pub(crate) fn begin(&self) {
        let Some(frozen) = self.frozen.lock().unwrap().clone() else {
            return;
        };
        if self.begun.load(Ordering::Relaxed) < BACKUPS
            && let Some(backup) = Backup::begin(self, frozen)
        {
            self.begun.fetch_add(1, Ordering::Relaxed);
            self.note("a backup begins", 0);
            self.backups.lock().unwrap().push(backup);
            self.poll();
        }
    }

    /// The proxy goes on as far as it can.
    fn poll(&self) {
        let mut under_way = std::mem::take(&mut *self.backups.lock().unwrap());
        under_way.retain_mut(|backup| match backup.poll(self) {
            None => true,
            Some(ending) => {
                let mut counts = self.counts.lock().unwrap();
                match ending {
                    Ending::Completed => counts.completed += 1,
                    Ending::Gone => counts.gone += 1,
                    Ending::HostLost => counts.lost += 1,
                }
                false
            }
        });
        self.backups.lock().unwrap().append(&mut under_way);
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
    }

    /// Whether the frozen image may be gone for a reason.
    pub(crate) fn may_be_gone(&self, frozen: &Frozen) -> bool {
        frozen.ended.load(Ordering::Relaxed) || self.volume().is_lost() || frozen.image.stands().is_err()
    }

    pub(crate) fn drops_connections(&self) -> bool {
        self.drops < 100_000
    }

    /// Runs until every backup has come to its end.
    pub(crate) fn run(&self) -> Counts {
        // Something happens before the first freeze, too.
        for _ in 0..self.dice.roll(30) {
            self.volume().act(self);
        }
        while self.frozen.lock().unwrap().is_none() {
            self.freeze();
            self.volume().act(self);
        }
        loop {
            if self.backups.lock().unwrap().is_empty() {
                if self.begun.load(Ordering::Relaxed) == BACKUPS {
                    break;
                }
                let frozen = self.frozen.lock().unwrap().clone();
                if self.dice.one_in(2) || frozen.is_none_or(|frozen| self.may_be_gone(&frozen)) {
                    self.freeze();
                }
                self.begin();
            }
            self.step();
            let steps = self.steps.load(Ordering::Relaxed);
            assert!(steps < STEPS_MAX, "a backup hangs");
        }
        let mut counts = *self.counts.lock().unwrap();
        counts.steps = self.steps.load(Ordering::Relaxed);
        counts
    }
}
