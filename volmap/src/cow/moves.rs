//! Which units of a frozen image lie in the copy area by now.

use std::collections::BTreeMap;

use crate::cow::unit::{CopyUnit, Slot, Unit};
use crate::generation::Generation;
use crate::range::ByteRange;

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
#[derive(Debug)]
pub(super) struct Moves {
    unit: CopyUnit,
    moved: BTreeMap<Unit, Move>,
}

impl Moves {
    /// Nothing has moved.
    pub(super) fn new(unit: CopyUnit) -> Self {
        Self {
            unit,
            moved: BTreeMap::new(),
        }
    }

    /// Whether `unit` lies in the copy area.
    pub(super) fn contains(&self, unit: Unit) -> bool {
        self.moved.contains_key(&unit)
    }

    /// Records that `unit` lies in `slot` from now on.
    pub(super) fn add(&mut self, unit: Unit, slot: Slot, generation: Generation) {
        let before = self.moved.insert(unit, Move { slot, generation });
        assert!(
            before.is_none(),
            "unit {unit} moves once: it is claimed by one writer"
        );
    }

    /// Forgets all moves, and gives the slots that held them.
    pub(super) fn take_slots(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.moved)
            .into_values()
            .map(|moved| moved.slot)
            .collect()
    }

    /// Cuts `range` at every change of source, in order.
    pub(super) fn pieces(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, Source)> {
        let unit_bytes = self.unit;
        let mut moved = self.moved.range(self.unit.touching(range)).peekable();
        let mut at = range.start();
        std::iter::from_fn(move || {
            let (end, source) = match moved.peek() {
                Some(&(&unit, &Move { slot, generation })) if unit_bytes.start(unit) <= at => {
                    moved.next();
                    let offset = unit_bytes.place(slot) + (at - unit_bytes.start(unit));
                    (
                        unit_bytes.start(unit + 1),
                        Source::CopyArea { offset, generation },
                    )
                }
                Some(&(&unit, _)) => (unit_bytes.start(unit), Source::Origin),
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
    use crate::limits::{COPY_AREA_HEADER, COPY_UNIT};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn pieces_cover_the_range_once() {
        let generation = Generation::from_wire(9);
        let mut moves = Moves::new(CopyUnit::default());
        moves.add(1, 0, generation);
        moves.add(2, 1, generation);
        let copy = |offset| Source::CopyArea {
            offset: COPY_AREA_HEADER + offset,
            generation,
        };
        let found: Vec<_> = moves.pieces(range(10, 4 * COPY_UNIT - 1)).collect();
        assert_eq!(
            found,
            [
                (range(10, COPY_UNIT), Source::Origin),
                (range(COPY_UNIT, 2 * COPY_UNIT), copy(0)),
                (range(2 * COPY_UNIT, 3 * COPY_UNIT), copy(COPY_UNIT)),
                (range(3 * COPY_UNIT, 4 * COPY_UNIT - 1), Source::Origin),
            ]
        );
        let inside: Vec<_> = moves.pieces(range(COPY_UNIT + 5, COPY_UNIT + 7)).collect();
        assert_eq!(inside, [(range(COPY_UNIT + 5, COPY_UNIT + 7), copy(5))]);
    }

    #[test]
    fn what_is_taken_is_forgotten() {
        let mut moves = Moves::new(CopyUnit::default());
        moves.add(7, 3, Generation::from_wire(9));
        moves.add(8, 1, Generation::from_wire(9));
        assert_eq!(moves.take_slots(), [3, 1]);
        assert!(!moves.contains(7));
        assert!(moves.take_slots().is_empty());
    }
}
