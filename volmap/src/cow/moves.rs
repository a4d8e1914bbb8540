//! Which units of a frozen image lie in the copy area by now.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::generation::Generation;
use crate::limits::COPY_UNIT;
use crate::range::ByteRange;

/// A unit of the origin, by its index.
pub(super) type Unit = u64;

/// The units that `range` touches.
pub(super) fn units_touching(range: ByteRange) -> Range<Unit> {
    range.start() / COPY_UNIT..range.end().div_ceil(COPY_UNIT)
}

/// A place for one unit in the copy area. Its first unit holds the header, so slot 0 follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(pub(super) u64);

impl Slot {
    /// Byte offset in the copy area.
    pub(super) fn offset(self) -> u64 {
        (self.0 + 1) * COPY_UNIT
    }

    /// Slots that a copy area of `size` bytes has.
    pub(super) fn count(size: u64) -> u64 {
        (size / COPY_UNIT).saturating_sub(1)
    }
}

#[derive(Clone, Copy, Debug)]
struct Move {
    slot: Slot,
    generation: Generation,
}

/// Where a piece of the frozen image lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// In the origin, at its own offset.
    Origin,
    /// In the copy area: the offset there of its first byte, and the generation since the switch.
    CopyArea { offset: u64, generation: Generation },
}

/// Units that moved, each with its slot and the generation of the switch. Units are added and never changed.
#[derive(Default, Debug)]
pub(super) struct Moves(BTreeMap<Unit, Move>);

impl Moves {
    /// Whether `unit` lies in the copy area.
    pub(super) fn contains(&self, unit: Unit) -> bool {
        self.0.contains_key(&unit)
    }

    /// Records that consecutive units lie in consecutive slots from now on.
    pub(super) fn add(&mut self, units: Range<Unit>, first: Slot, generation: Generation) {
        for (index, unit) in (0..).zip(units) {
            let slot = Slot(first.0 + index);
            let before = self.0.insert(unit, Move { slot, generation });
            assert!(
                before.is_none(),
                "unit {unit} moves once: it is claimed by one writer"
            );
        }
    }

    /// Cuts `range` at every change of source, in order.
    pub(super) fn pieces(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, Source)> {
        let mut moved = self.0.range(units_touching(range)).peekable();
        let mut at = range.start();
        std::iter::from_fn(move || {
            let (end, source) = match moved.peek() {
                Some(&(&unit, &Move { slot, generation })) if unit * COPY_UNIT <= at => {
                    moved.next();
                    let offset = slot.offset() + (at - unit * COPY_UNIT);
                    ((unit + 1) * COPY_UNIT, Source::CopyArea { offset, generation })
                }
                Some(&(&unit, _)) => (unit * COPY_UNIT, Source::Origin),
                None => (range.end(), Source::Origin),
            };
            let piece = ByteRange::from_bounds(at, end.min(range.end()))?;
            at = piece.end();
            Some((piece, source))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn pieces_cover_the_range_once() {
        let generation = Generation::from_wire(9);
        let mut moves = Moves::default();
        moves.add(1..3, Slot(0), generation);
        let copy = |offset| Source::CopyArea { offset, generation };
        let found: Vec<_> = moves.pieces(range(10, 4 * COPY_UNIT - 1)).collect();
        assert_eq!(
            found,
            [
                (range(10, COPY_UNIT), Source::Origin),
                (range(COPY_UNIT, 2 * COPY_UNIT), copy(COPY_UNIT)),
                (range(2 * COPY_UNIT, 3 * COPY_UNIT), copy(2 * COPY_UNIT)),
                (range(3 * COPY_UNIT, 4 * COPY_UNIT - 1), Source::Origin),
            ]
        );
        let inside: Vec<_> = moves.pieces(range(COPY_UNIT + 5, COPY_UNIT + 7)).collect();
        assert_eq!(
            inside,
            [(range(COPY_UNIT + 5, COPY_UNIT + 7), copy(COPY_UNIT + 5))]
        );
    }

    #[test]
    fn the_header_takes_a_slot() {
        assert_eq!(Slot::count(0), 0);
        assert_eq!(Slot::count(2 * COPY_UNIT - 1), 0);
        assert_eq!(Slot::count(2 * COPY_UNIT), 1);
        assert_eq!(Slot(0).offset(), COPY_UNIT);
    }
}
