//! Keeping the old data, before a writer may touch it: steps (1) and (2).
//!
//! The copy is made once, whoever needs it; then each frozen image switches by itself, in its own critical section, and the
//! writer goes on when all have. Neither the claims' lock nor any image's is held over I/O.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::cow::claims::{Claim, Claims};
use crate::cow::frozen::Frozen;
use crate::cow::slots::Slots;
use crate::cow::unit::{CopyUnit, Unit};
use crate::generation::GenerationClock;
use crate::range::ByteRange;
use crate::storage::AlignedBuffer;
use crate::storage::Backing;

/// What copying needs.
pub(super) struct Keeper<'a> {
    pub(super) unit: CopyUnit,
    /// Oldest first.
    pub(super) images: &'a [Arc<Frozen>],
    pub(super) origin: &'a dyn Backing,
    pub(super) copy_area: &'a dyn Backing,
    pub(super) claims: &'a Claims,
    pub(super) slots: &'a Slots,
    pub(super) clock: &'a GenerationClock,
}

/// Why the old data of a unit could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("the copy area is full ({0} bytes of old data): give it more room")]
    Full(u64),
    #[error("reading the old data of the origin failed: {0}")]
    Read(io::Error),
    #[error("writing to the copy area failed: {0}")]
    Write(io::Error),
}

/// Units whose old data could not be kept.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) units: Range<Unit>,
    pub(super) error: CopyError,
}

impl Keeper<'_> {
    /// Returns `Ok` when every unit that `range` touches lies in the copy area for every frozen image, or was zero at its freeze, or
    /// the image is gone: then, and not before, the writer may go to the origin.
    pub(super) fn keep(&self, range: ByteRange) -> Result<(), Trouble> {
        let mut units = self.unit.touching(range);
        let needed = |unit| self.images.iter().any(|image| image.needs(unit));
        while let Some(claim) = (self.claims).claim(units.clone(), self.unit.per_run(), needed) {
            units.start = claim.units.end;
            let claimed = claim.units.clone();
            self.copy(&claim).map_err(|error| Trouble {
                units: claimed,
                error,
            })?;
        }
        Ok(())
    }

    fn copy(&self, claim: &Claim<'_>) -> Result<(), CopyError> {
        let mut units = claim.units.clone();
        // The last unit of the origin may be short; its slot is whole, with zeroes behind the end.
        let mut old = AlignedBuffer::zeroed(len(self.unit.start(units.end - units.start)));
        let bytes = (self.unit)
            .bytes_of(units.clone(), self.origin.size())
            .expect("claimed units lie within the origin");
        (self.origin)
            .read_at(bytes.start(), &mut old[..len(bytes.len())])
            .map_err(CopyError::Read)?;
        let mut kept = 0;
        while units.start < units.end {
            let taken = (self.slots)
                .take(units.end - units.start)
                .ok_or_else(|| CopyError::Full(self.slots.fill().size))?;
            let count = taken.run.end - taken.run.start;
            let piece = kept..kept + len(self.unit.start(count));
            (self.copy_area)
                .write_through_at(self.unit.place(taken.run.start), &old[piece.clone()])
                .map_err(CopyError::Write)?;
            // The switch, before the claim and the writer's hold on the slots end.
            let moved = units.start..units.start + count;
            for image in self.images {
                image.switch(moved.clone(), taken.run.start, self.clock);
            }
            kept = piece.end;
            units.start = moved.end;
        }
        Ok(())
    }
}

fn len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a run is at most COPY_RUN bytes")
}
