//! A model world for tests: a volume under copy-before-write, its LUN, and a writer that is let in at chosen points.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;
use volmap::generation::Generation;
use volmap::identity::Identity;
use volmap::map::Content;
use volmap::range::ByteRange;

use super::luns::Luns;
use super::source::FrozenSource;
use super::{CheckpointEvery, Tally, Writing};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Encoder, Header, LunProof, LunRecord};
use crate::output::Output;
use crate::plan::mapped::{DiskPlace, MappedExtent};
use crate::transport::direct::{Lun, LunReader, MemoryPool, ReadMeanwhile, ReadThreads};

/// Bytes of a unit of the model's copy-before-write.
pub(super) const UNIT: u64 = 512;

/// All that `run` is told of its writer: a checkpoint with each sync, and no spool.
pub(super) fn writing(size: u64, output: Box<dyn Output>) -> Writing {
    let (encoder, first) = Encoder::new(&Header {
        image: Uuid::nil(),
        frozen: Uuid::nil(),
        parent: None,
        size,
        created: 0,
        volume: String::new(),
        description: String::new(),
        stores: Vec::new(),
        luns: vec![LunRecord {
            identity: Identity::from_operator("lun").unwrap(),
            proof: LunProof::SampledOnly,
            path: String::new(),
        }],
        software: String::new(),
        job: None,
    });
    Writing {
        encoder,
        first,
        output,
        tally: Tally::default(),
        delta: None,
        checkpoints: Some(CheckpointEvery {
            bytes: u64::MAX,
            time: Duration::ZERO,
        }),
        spool: None,
        is_all_read: Arc::default(),
    }
}

/// Where a writer can be let in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Point {
    /// The map has been answered.
    AfterMap,
    /// A direct read is about to begin.
    BeforeRead,
    /// A direct read is half done.
    DuringRead,
    /// A direct read has completed, and has not been validated.
    AfterRead,
    /// The validation has been answered.
    AfterValidation,
}

/// What the writer does, once, at a point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Overwrite(u64),
    /// The frozen bytes of a unit go elsewhere in the copy area, and others come to where they were.
    Move(u64),
    /// Everything gets a new generation where it lies.
    Restamp,
    /// The next answer tells no locations: the host looks where things lie.
    Withhold,
    /// The mapping witness is lost: nothing is direct from now on.
    LoseMapping,
    /// The content witness is lost.
    LoseContent,
}

#[derive(Debug, Default)]
struct State {
    /// Origin first, the copy area behind it.
    disk: Vec<u8>,
    frozen: Vec<u8>,
    /// Units that hold zeroes at the freeze.
    zero: Vec<bool>,
    /// Copied units: place and generation.
    copied: BTreeMap<u64, (u64, u64)>,
    generation: u64,
    /// The generation of what was not copied.
    first: u64,
    opaque: bool,
    /// The next answer tells no locations.
    withheld: bool,
    gone: bool,
    /// Extents in one reply.
    reply_limit: usize,
    acts: Vec<(Point, Act)>,
    /// Overwrites without a copy and without a new generation.
    careless: bool,
    /// Maps that were asked for.
    maps: u64,
    /// Generations that were asked for.
    questions: u64,
    /// Where the LUN gives errors, by place on it.
    lun_bad: Option<ByteRange>,
    /// Where the host gives errors, whatever else is wrong with it.
    host_bad: Option<ByteRange>,
    /// A byte of the LUN that is read wrong.
    lie: Option<u64>,
}

/// The world; clones share it.
#[derive(Clone, Debug)]
pub(super) struct World(Arc<Mutex<State>>);

impl World {
    /// A volume of `units` units, some of them zero, with acts that happen in order as their points come by.
    pub(super) fn new(zero: &[bool], reply_limit: usize, acts: Vec<(Point, Act)>) -> Self {
        let units = zero.len();
        let frozen: Vec<u8> = (0..units)
            .flat_map(|u| (0..UNIT).map(move |i| (u, i)))
            .map(|(u, i)| {
                if zero[u] {
                    0
                } else {
                    u8::try_from((u as u64 * 7 + i) % 255 + 1).unwrap()
                }
            })
            .collect();
        let mut disk = frozen.clone();
        disk.resize(frozen.len() * 2, 0xee);
        Self(Arc::new(Mutex::new(State {
            disk,
            frozen,
            zero: zero.to_vec(),
            generation: 100,
            first: 100,
            reply_limit,
            acts,
            ..State::default()
        })))
    }

    /// Makes the host break law H2: the origin is overwritten without a new generation.
    pub(super) fn careless(self) -> Self {
        self.state().careless = true;
        self
    }

    /// Every unit lies elsewhere than beside its neighbours, so that each is an extent of its own.
    pub(super) fn fragmented(self) -> Self {
        {
            let mut state = self.state();
            for unit in 0..state.zero.len() as u64 {
                state.act(Act::Overwrite(unit));
            }
        }
        self
    }

    /// Data that is nothing but zeroes, on the LUN and through the host.
    pub(super) fn allocated_zeroes(self) -> Self {
        {
            let mut state = self.state();
            state.disk.fill(0);
            state.frozen.fill(0);
        }
        self
    }

    /// Puts something into one unit.
    pub(super) fn with_content_in(self, unit: u64) -> Self {
        {
            let mut state = self.state();
            let at = usize::try_from(unit * UNIT).unwrap();
            state.disk[at] = 7;
            state.frozen[at] = 7;
        }
        self
    }

    /// How often a map was asked for.
    pub(super) fn maps_asked(&self) -> u64 {
        self.state().maps
    }

    /// How often generations were asked for.
    pub(super) fn questions(&self) -> u64 {
        self.state().questions
    }

    /// The LUN cannot be read in this range of it any more, and the host cannot read that range of the volume.
    pub(super) fn fail(&self, lun: Option<ByteRange>, host: Option<ByteRange>) {
        let mut state = self.state();
        (state.lun_bad, state.host_bad) = (lun, host);
    }

    /// The LUN gives another byte here from now on.
    pub(super) fn lie_at(&self, byte: u64) {
        self.state().lie = Some(byte);
    }

    /// An act at once.
    pub(super) fn act(&self, act: Act) {
        self.state().act(act);
    }

    /// One more act.
    pub(super) fn let_in(&self, point: Point, act: Act) {
        self.state().acts.push((point, act));
    }

    pub(super) fn frozen(&self) -> Vec<u8> {
        self.state().frozen.clone()
    }

    pub(super) fn luns(&self) -> Luns {
        let identity = Identity::from_operator("lun").unwrap();
        Luns::new(vec![Lun::new(identity, "lun".into(), Box::new(self.clone()))])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets the writer in: the first act that waits for this point.
    fn at(&self, point: Point) {
        let mut state = self.state();
        if let Some(index) = state.acts.iter().position(|(p, _)| *p == point) {
            let (_, act) = state.acts.remove(index);
            state.act(act);
        }
    }
}

impl State {
    fn act(&mut self, act: Act) {
        match act {
            Act::Restamp => {
                self.generation += 1;
                self.first = self.generation;
                for (_, generation) in self.copied.values_mut() {
                    *generation = self.generation;
                }
            }
            Act::Move(unit) => {
                let taken: Vec<u64> = self.copied.values().map(|(place, _)| *place).collect();
                let units = self.zero.len() as u64;
                let free = |slot: &u64| !taken.contains(&(slot * UNIT));
                let to = (units..2 * units).rev().find(free).unwrap() * UNIT;
                self.generation += 1;
                let was = self.copied.insert(unit, (to, self.generation));
                let from = usize::try_from(was.map_or(unit * UNIT, |(place, _)| place)).unwrap();
                let bytes = from..from + usize::try_from(UNIT).unwrap();
                self.disk.copy_within(bytes.clone(), usize::try_from(to).unwrap());
                self.disk[bytes]
                    .iter_mut()
                    .for_each(|byte| *byte = byte.wrapping_add(1));
            }
            Act::Withhold => self.withheld = true,
            Act::LoseMapping => self.opaque = true,
            Act::LoseContent => self.gone = true,
            Act::Overwrite(unit) => {
                let unit = unit % self.zero.len() as u64;
                let (start, len) = (
                    usize::try_from(unit * UNIT).unwrap(),
                    usize::try_from(UNIT).unwrap(),
                );
                if !self.zero[usize::try_from(unit).unwrap()]
                    && !self.careless
                    && !self.copied.contains_key(&unit)
                {
                    // Slots in reverse, so that neighbours do not stay neighbours.
                    let slot = self.zero.len() as u64 * 2 - 1 - self.copied.len() as u64;
                    let to = usize::try_from(slot * UNIT).unwrap();
                    self.disk.copy_within(start..start + len, to);
                    self.generation += 1;
                    self.copied.insert(unit, (slot * UNIT, self.generation));
                }
                for byte in &mut self.disk[start..start + len] {
                    *byte = byte.wrapping_add(1);
                }
            }
        }
    }

    fn answer(&mut self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        if self.gone {
            return Err(Error::new(ErrorKind::FrozenImageGone, "gone"));
        }
        let opaque = std::mem::take(&mut self.withheld) || self.opaque;
        let mut extents = Vec::new();
        let mut at = range.start();
        while at < range.end() && extents.len() < self.reply_limit {
            let unit = at / UNIT;
            let piece = ByteRange::from_bounds(at, range.end().min((unit + 1) * UNIT)).unwrap();
            let zero = self.zero[usize::try_from(unit).unwrap()];
            let (offset, generation) = self
                .copied
                .get(&unit)
                .copied()
                .unwrap_or((unit * UNIT, self.first));
            let place = DiskPlace {
                disk: 0,
                offset: offset + at % UNIT,
            };
            extents.push(MappedExtent {
                range: piece,
                content: if zero { Content::Hole } else { Content::Data },
                generation: Generation::from_wire(if opaque { 0 } else { generation }),
                place: (!zero && !opaque).then_some(place),
            });
            at = piece.end();
        }
        Ok(extents)
    }
}

impl FrozenSource for World {
    fn size(&self) -> u64 {
        self.state().frozen.len() as u64
    }

    async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        let answer = {
            let mut state = self.state();
            state.maps += 1;
            state.answer(range)
        };
        self.at(Point::AfterMap);
        answer
    }

    async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        let answer = {
            let mut state = self.state();
            state.questions += 1;
            state.answer(range)
        };
        self.at(Point::AfterValidation);
        answer
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        let state = self.state();
        if state
            .host_bad
            .is_some_and(|bad| bad.intersection(range).is_some())
        {
            return Err(Error::new(ErrorKind::HostCannotRead, "bad"));
        }
        if state.gone {
            return Err(Error::new(ErrorKind::FrozenImageGone, "gone"));
        }
        let bytes = usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap();
        Ok(Bytes::copy_from_slice(&state.frozen[bytes]))
    }
}

impl LunReader for World {
    /// Without a thread, so that the order of things is always the same.
    fn read_meanwhile(
        self: Arc<Self>,
        blocks: ByteRange,
        pool: &MemoryPool,
        _: &ReadThreads,
    ) -> ReadMeanwhile {
        let len = usize::try_from(blocks.len()).unwrap();
        let mut memory = pool.take(len);
        let read = self.read_at(blocks.start(), &mut memory[..len]);
        Box::pin(std::future::ready(read.map(|filled| (memory, filled))))
    }

    fn size(&self) -> u64 {
        self.state().disk.len() as u64
    }

    fn block_size(&self) -> u64 {
        128
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.at(Point::BeforeRead);
        let read = ByteRange::new(offset, buf.len() as u64).unwrap();
        if self
            .state()
            .lun_bad
            .is_some_and(|bad| bad.intersection(read).is_some())
        {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let offset = usize::try_from(offset).unwrap();
        let half = buf.len() / 2;
        buf[..half].copy_from_slice(&self.state().disk[offset..offset + half]);
        self.at(Point::DuringRead);
        let len = buf.len();
        buf[half..].copy_from_slice(&self.state().disk[offset + half..offset + len]);
        self.at(Point::AfterRead);
        let lie = self.state().lie;
        if let Some(lie) = lie.filter(|byte| read.contains(*byte)) {
            buf[usize::try_from(lie).unwrap() - offset] ^= 1;
        }
        Ok(len)
    }
}
