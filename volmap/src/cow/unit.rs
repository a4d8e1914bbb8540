//! In what pieces old data is kept, and where in the copy area each has its place.

use std::ops::Range;

use crate::limits::{COPY_AREA_HEADER, COPY_RUN, COPY_UNIT, COPY_UNIT_MAX, COPY_UNIT_MIN};
use crate::range::ByteRange;

/// A unit of the origin, by its index.
pub(super) type Unit = u64;

/// A place for one unit in the copy area, by its index. The header comes before the first.
pub(super) type Slot = u64;

/// How many bytes a unit has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyUnit(u64);

impl Default for CopyUnit {
    fn default() -> Self {
        Self(COPY_UNIT)
    }
}

impl CopyUnit {
    /// Units of so many bytes; `None` unless it is a power of two within [`COPY_UNIT_MIN`] and [`COPY_UNIT_MAX`].
    pub fn new(bytes: u64) -> Option<Self> {
        let fits = bytes.is_power_of_two() && (COPY_UNIT_MIN..=COPY_UNIT_MAX).contains(&bytes);
        fits.then_some(Self(bytes))
    }

    /// Bytes of a unit.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Most units that are kept in one go.
    pub(super) fn per_run(self) -> u64 {
        COPY_RUN / self.0
    }

    /// Units of a volume of `size` bytes; the last one may be short.
    pub(super) fn count(self, size: u64) -> u64 {
        size.div_ceil(self.0)
    }

    /// The units that `range` touches.
    pub(super) fn touching(self, range: ByteRange) -> Range<Unit> {
        range.start() / self.0..range.end().div_ceil(self.0)
    }

    /// First byte of `unit`.
    pub(super) fn start(self, unit: Unit) -> u64 {
        unit * self.0
    }

    /// The bytes of consecutive units in a volume of `size` bytes.
    pub(super) fn bytes_of(self, units: Range<Unit>, size: u64) -> Option<ByteRange> {
        ByteRange::from_bounds(
            self.start(units.start),
            units.end.saturating_mul(self.0).min(size),
        )
    }

    /// Slots that a copy area of `size` bytes has.
    pub(super) fn slots(self, size: u64) -> u64 {
        size.saturating_sub(COPY_AREA_HEADER) / self.0
    }

    /// First byte of `slot` in the copy area.
    pub(super) fn place(self, slot: Slot) -> u64 {
        COPY_AREA_HEADER + slot * self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_two_within_their_limits() {
        for (bytes, fits) in [
            (0, false),
            (COPY_UNIT_MIN / 2, false),
            (COPY_UNIT_MIN, true),
            (COPY_UNIT_MIN + 1, false),
            (12_288, false),
            (COPY_UNIT_MAX, true),
            (2 * COPY_UNIT_MAX, false),
        ] {
            assert_eq!(CopyUnit::new(bytes).is_some(), fits, "{bytes}");
        }
        assert_eq!(CopyUnit::new(COPY_UNIT), Some(CopyUnit::default()));
    }

    #[test]
    fn slots_begin_behind_the_header() {
        for bytes in [COPY_UNIT_MIN, COPY_UNIT, COPY_UNIT_MAX] {
            let unit = CopyUnit::new(bytes).unwrap();
            assert_eq!(unit.slots(0), 0);
            assert_eq!(unit.slots(COPY_AREA_HEADER + bytes - 1), 0);
            assert_eq!(unit.slots(COPY_AREA_HEADER + bytes), 1);
            assert_eq!(unit.place(0), COPY_AREA_HEADER);
            assert_eq!(unit.place(2), COPY_AREA_HEADER + 2 * bytes);
        }
    }

    #[test]
    fn the_last_unit_may_be_short() {
        let unit = CopyUnit::default();
        assert_eq!(unit.count(2 * COPY_UNIT + 1), 3);
        let bytes = unit.bytes_of(1..3, 2 * COPY_UNIT + 1);
        assert_eq!(bytes, ByteRange::from_bounds(COPY_UNIT, 2 * COPY_UNIT + 1));
        assert_eq!(unit.touching(bytes.unwrap()), 1..3);
    }
}
