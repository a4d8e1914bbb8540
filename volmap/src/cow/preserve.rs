//! Keeping the old data, before a writer may touch it: steps (1) and (2).
//!
//! * A writer *claims* the units that it copies, a run at a time, and holds no claim while it waits for another's: so two
//!   writers of one unit copy it once, both wait for it, and no circle of waiters can form.
//! * The claims' lock also guards the slots; the state's lock is the critical section of the switch. Neither is held
//!   over I/O.

use std::io;
use std::ops::Range;
use std::sync::PoisonError;

use crate::cow::frozen::Frozen;
use crate::cow::moves::{Unit, units_touching};
use crate::generation::GenerationClock;
use crate::limits::{COPY_RUN_UNITS, COPY_UNIT};
use crate::map::Content;
use crate::range::ByteRange;
use crate::storage::AlignedBuffer;
use crate::storage::Backing;

/// What copying needs.
pub(super) struct Keeper<'a> {
    pub(super) frozen: &'a Frozen,
    pub(super) origin: &'a dyn Backing,
    pub(super) copy_area: &'a dyn Backing,
    pub(super) clock: &'a GenerationClock,
}

/// Why the old data of a unit could not be kept.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the copy area is full ({0} bytes): give the next freeze a larger one")]
    Full(u64),
    #[error("reading the old data of the origin failed: {0}")]
    Read(io::Error),
    #[error("writing to the copy area failed: {0}")]
    Write(io::Error),
}

/// Units that one writer copies. Dropped, on whatever way out, it lets the others look again.
struct Claim<'a> {
    frozen: &'a Frozen,
    units: Range<Unit>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claims = self.frozen.claims();
        for unit in self.units.clone() {
            claims.units.remove(&unit);
        }
        drop(claims);
        self.frozen.claims_changed.notify_all();
    }
}

impl Keeper<'_> {
    /// Returns when every unit that `range` touches lies in the copy area, or was zero at the freeze, or the frozen image
    /// is gone: then, and not before, the writer may go to the origin.
    pub(super) fn keep(&self, range: ByteRange) {
        let units = units_touching(range);
        let (start, end) = (
            units.start * COPY_UNIT,
            self.frozen
                .content
                .size()
                .min(units.end.saturating_mul(COPY_UNIT)),
        );
        let Some(whole) = ByteRange::from_bounds(start, end) else {
            return;
        };
        for extent in self.frozen.content.within(whole) {
            if extent.content == Content::Data {
                self.keep_units(units_touching(extent.range));
            }
        }
    }

    fn keep_units(&self, mut units: Range<Unit>) {
        while let Some(claim) = claim(self.frozen, units.clone()) {
            units.start = claim.units.end;
            if let Err(error) = self.copy(claim) {
                self.frozen.lose(&error.to_string());
                return;
            }
        }
    }

    fn copy(&self, claim: Claim<'_>) -> Result<(), CopyError> {
        let units = claim.units.clone();
        let count = units.end - units.start;
        let first = (self.frozen)
            .take_slots(count)
            .ok_or_else(|| CopyError::Full(self.copy_area.size()))?;
        // The last unit of the origin may be short; its slot is whole, with zeroes behind the end.
        let len = (units.end * COPY_UNIT).min(self.origin.size()) - units.start * COPY_UNIT;
        let mut old = AlignedBuffer::zeroed(run_len(count * COPY_UNIT));
        (self.origin)
            .read_at(units.start * COPY_UNIT, &mut old[..run_len(len)])
            .map_err(CopyError::Read)?;
        (self.copy_area)
            .write_through_at(first.offset(), &old)
            .map_err(CopyError::Write)?;
        // The switch: location and generation change together, and before the claim ends.
        let mut state = self.frozen.state_mut();
        state.moves.add(units, first, self.clock.next());
        Ok(())
    }
}

fn run_len(len: u64) -> usize {
    usize::try_from(len).expect("a run is at most COPY_RUN_UNITS units")
}

/// Claims the next run of `units` that have to be copied, once no other writer is at its first unit. `None`: nothing of
/// them is left to copy, or nothing needs it any more.
fn claim(frozen: &Frozen, mut units: Range<Unit>) -> Option<Claim<'_>> {
    let mut claims = frozen.claims();
    loop {
        let state = frozen.state();
        if state.lost.is_some() {
            return None;
        }
        let start = units.find(|&unit| !state.moves.contains(unit))?;
        if !claims.units.contains(&start) {
            let free = |unit: &Unit| !state.moves.contains(*unit) && !claims.units.contains(unit);
            let most = (start + COPY_RUN_UNITS).min(units.end);
            let end = (start..most).find(|unit| !free(unit)).unwrap_or(most);
            claims.units.extend(start..end);
            return Some(Claim {
                frozen,
                units: start..end,
            });
        }
        units.start = start;
        drop(state);
        claims = (frozen.claims_changed)
            .wait(claims)
            .unwrap_or_else(PoisonError::into_inner);
    }
}
