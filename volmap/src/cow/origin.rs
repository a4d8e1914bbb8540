//! The live volume, served read-write: every write passes here, and freezes and thaws wait for it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use parking_lot::RwLockReadGuard;

use crate::cow::claims::Claims;
use crate::cow::error::CowError;
use crate::cow::freezing::Surveys;
use crate::cow::gate::Gate;
use crate::cow::ground::Ground;
use crate::cow::holding::{OnFull, Wait, Waiting};
use crate::cow::lineage::Lineage;
use crate::cow::living::Living;
use crate::cow::preserve::Keeper;
use crate::cow::slots::{Fullness, Slots};
use crate::cow::unit::CopyUnit;
use crate::frozen::CopyAreaUse;
use crate::generation::GenerationClock;
use crate::limits::{COPY_AREA_HEADER, READY_MAX, SYNC_AHEAD_ENOUGH, WINDOW_MAX};
use crate::range::ByteRange;
use crate::storage::{Backing, WriteBack};

/// How old data is kept, and frozen images begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyOptions {
    /// In what pieces.
    pub unit: CopyUnit,
    /// What is done when there is no room for it.
    pub on_full: OnFull,
    /// For how long a freeze holds writers at most.
    pub window_max: Duration,
    /// How long it may take to get ready ahead of that, while writers go on.
    pub ready_max: Duration,
    /// A sync ahead of a freeze that was this short is the last: one like it is what writers wait for.
    pub sync_ahead_enough: Duration,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            unit: CopyUnit::default(),
            on_full: OnFull::default(),
            window_max: WINDOW_MAX,
            ready_max: READY_MAX,
            sync_ahead_enough: SYNC_AHEAD_ENOUGH,
        }
    }
}

/// How a copy area is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyAreaState {
    /// What is used of it.
    pub fill: CopyAreaUse,
    /// How near its end it is.
    pub fullness: Fullness,
    /// What is done at its end.
    pub on_full: OnFull,
    /// Writers that wait for room at this moment.
    pub held_writers: usize,
}

/// A request that does not lie within the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{len} bytes from {offset} on do not lie within the origin's {size}")]
pub struct OutOfBounds {
    /// First byte of the request.
    pub offset: u64,
    /// Bytes of the request.
    pub len: u64,
    /// Size of the origin in bytes.
    pub size: u64,
}

/// A live volume under copy-before-write.
///
/// All methods may be called from many threads at once. Writers of different units copy in parallel; a freeze holds new
/// writes and waits for those in flight. While no frozen image lives, requests go straight through.
pub struct Origin {
    pub(super) backing: Box<dyn Backing>,
    pub(super) copy_area: Box<dyn Backing>,
    pub(super) ground: Box<dyn Ground>,
    pub(super) clock: Arc<GenerationClock>,
    pub(super) options: CopyOptions,
    claims: Claims,
    pub(super) slots: Arc<Slots>,
    waiting: Waiting,
    pub(super) gate: Gate,
    pub(super) surveys: Surveys,
    pub(super) last_window: Mutex<Option<Duration>>,
    pub(super) write_back: WriteBack,
}

impl Origin {
    /// An origin on storage of the caller's choice; [`Origin::open`] is for paths.
    ///
    /// # Errors
    /// [`CowError::CopyAreaTooSmall`].
    pub fn with_backings(
        backing: Box<dyn Backing>,
        copy_area: Box<dyn Backing>,
        ground: Box<dyn Ground>,
        clock: Arc<GenerationClock>,
        options: CopyOptions,
    ) -> Result<Arc<Self>, CowError> {
        let count = options.unit.slots(copy_area.size());
        if count == 0 {
            return Err(CowError::CopyAreaTooSmall {
                size: copy_area.size(),
                min: COPY_AREA_HEADER + options.unit.bytes(),
            });
        }
        let size = backing.size();
        Ok(Arc::new(Self {
            backing,
            copy_area,
            ground,
            clock,
            options,
            claims: Claims::default(),
            slots: Arc::new(Slots::new(options.unit, count)),
            waiting: Waiting::default(),
            gate: Gate::new(Living {
                images: Vec::new(),
                lineage: Lineage::new(options.unit, size),
            }),
            surveys: Surveys::default(),
            last_window: Mutex::new(None),
            write_back: WriteBack::default(),
        }))
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.backing.size()
    }

    /// Fills `buf` with live bytes from `offset` on.
    ///
    /// # Errors
    /// [`OutOfBounds`] in an `InvalidInput`, or what the storage says.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.bounded(offset, buf.len() as u64)? {
            Some(_) => self.backing.read_at(offset, buf),
            None => Ok(()),
        }
    }

    /// Writes `data` at `offset`; with `fua` it is on stable storage at the return.
    ///
    /// # Errors
    /// As with [`Origin::read_at`]. Trouble with the copy area is never the writer's: it costs frozen images, or time.
    pub fn write_at(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let Some(range) = self.bounded(offset, data.len() as u64)? else {
            return Ok(());
        };
        let gate = self.enter(range);
        self.backing.write_at(offset, data)?;
        drop(gate);
        self.sync_if(fua)
    }

    /// Gives `len` bytes back: they read as zeroes from now on. While a frozen image lives they are written as zeroes,
    /// since the blocks have to stay where they are.
    ///
    /// # Errors
    /// As with [`Origin::read_at`].
    pub fn trim(&self, offset: u64, len: u64, fua: bool) -> io::Result<()> {
        self.zero(offset, len, true, fua)
    }

    /// Makes `len` bytes read as zeroes. `no_hole` asks that their blocks stay allocated.
    ///
    /// # Errors
    /// As with [`Origin::read_at`].
    pub fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> io::Result<()> {
        self.zero(offset, len, !no_hole, fua)
    }

    /// The same, if that is faster than writing: while no frozen image lives, and where blocks may be given back.
    ///
    /// # Errors
    /// `Unsupported`: it would not be, and nothing was changed. Else as with [`Origin::read_at`].
    pub fn write_zeroes_fast(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> io::Result<()> {
        let Some(range) = self.bounded(offset, len)? else {
            return Ok(());
        };
        // Shared, and no more: there is nothing to keep, and a freeze waits until it is done.
        let living = self.living();
        if no_hole || living.is_frozen() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        living.lineage.mark(range);
        self.backing.punch_at(offset, len)?;
        drop(living);
        self.sync_if(fua)
    }

    fn zero(&self, offset: u64, len: u64, may_punch: bool, fua: bool) -> io::Result<()> {
        let Some(range) = self.bounded(offset, len)? else {
            return Ok(());
        };
        let gate = self.enter(range);
        let punched = if may_punch && !gate.is_frozen() {
            self.backing.punch_at(offset, len)
        } else {
            Err(io::ErrorKind::Unsupported.into())
        };
        match punched {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.backing.write_zeroes_at(offset, len)?;
            }
            other => other?,
        }
        drop(gate);
        self.sync_if(fua)
    }

    /// Returns when everything that was written before is on stable storage.
    ///
    /// # Errors
    /// What the storage says, and what it said before: what is lost once stays so, whoever was told.
    pub fn flush(&self) -> io::Result<()> {
        // In the gate, so that no freeze comes between an error that was told here and its record.
        let _gate = self.living();
        self.sync()
    }

    fn sync_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.write_back.sync(|| self.backing.sync_data())
    }

    /// The same for a freeze: it begins before that, or not at all (`None`).
    pub(super) fn sync_begun_by(&self, until: Instant) -> Option<io::Result<()>> {
        self.write_back.sync_begun_by(until, || self.backing.sync_data())
    }

    /// `None`: nothing to do.
    fn bounded(&self, offset: u64, len: u64) -> io::Result<Option<ByteRange>> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(ByteRange::new(offset, len)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                OutOfBounds { offset, len, size },
            )),
        }
    }

    /// Behind the gate, beside other writers.
    pub(super) fn living(&self) -> RwLockReadGuard<'_, Living> {
        self.gate.enter()
    }

    /// Enters the gate and keeps the old data of `range`. What is returned is held until the write has completed.
    fn enter(&self, range: ByteRange) -> RwLockReadGuard<'_, Living> {
        let mut wait = None;
        loop {
            // Asked before the look: whoever ends while we look is not missed.
            let ends = self.slots.ends();
            let living = self.living();
            let Err(trouble) = self.keeper(&living).keep(range) else {
                living.lineage.mark(range);
                return living;
            };
            if wait.is_none() {
                wait = Wait::begin(&self.waiting, self.options.on_full, &trouble);
            }
            match wait.as_ref().and_then(Wait::patience) {
                Some(patience) => {
                    // Outside of the gate: the thaw that we wait for has to pass it.
                    drop(living);
                    self.slots.wait_for_end(ends, patience);
                }
                None => living.give_up(&trouble),
            }
        }
    }

    fn keeper<'a>(&'a self, living: &'a Living) -> Keeper<'a> {
        Keeper {
            unit: self.options.unit,
            images: &living.images,
            origin: &*self.backing,
            copy_area: &*self.copy_area,
            claims: &self.claims,
            slots: &self.slots,
            clock: &self.clock,
        }
    }

    /// In what pieces old data is kept.
    pub fn copy_unit(&self) -> CopyUnit {
        self.options.unit
    }

    /// What is used of the copy area.
    pub fn copy_area_use(&self) -> CopyAreaUse {
        self.slots.fill()
    }

    /// How the copy area is. Asked at any time: it waits for no writer and no freeze.
    pub fn copy_area_state(&self) -> CopyAreaState {
        CopyAreaState {
            fill: self.copy_area_use(),
            fullness: self.slots.fullness(),
            on_full: self.options.on_full,
            held_writers: self.waiting.count(),
        }
    }
}
