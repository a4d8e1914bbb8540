//! What was written between the freezes of an origin.
//!
//! One bitmap for each freeze holds what was written from it until the next. A write marks the last one only; what changed
//! between two freezes is all bitmaps between them. When nobody asks for a freeze any more, its bitmap is added to the one before
//! it, so that nothing is lost for those who ask for an older one.

use uuid::Uuid;

use crate::cow::dirty::DirtyBits;
use crate::cow::unit::CopyUnit;
use crate::frozen::ChangedMap;
use crate::limits::LINEAGE_MAX;
use crate::range::ByteRange;

struct Freeze {
    uuid: Uuid,
    written_since: DirtyBits,
}

/// The freezes of an origin that are remembered, oldest first. It changes under the closed gate, when no write is in flight.
pub(super) struct Lineage {
    unit: CopyUnit,
    size: u64,
    freezes: Vec<Freeze>,
}

impl Lineage {
    /// Of an origin of `size` bytes, never frozen.
    pub(super) fn new(unit: CopyUnit, size: u64) -> Self {
        Self {
            unit,
            size,
            freezes: Vec::new(),
        }
    }

    /// A write is about to go to the origin, inside the gate.
    pub(super) fn mark(&self, range: ByteRange) {
        if let Some(last) = self.freezes.last() {
            last.written_since.mark(self.unit.touching(range));
        }
    }

    /// A freeze is made at this instant.
    pub(super) fn begin(&mut self, uuid: Uuid) {
        if self.freezes.len() == LINEAGE_MAX {
            let oldest = self.freezes.remove(0);
            tracing::warn!(frozen = %oldest.uuid, "too many freezes to remember: what changed since this one is not known any more");
        }
        self.freezes.push(Freeze {
            uuid,
            written_since: DirtyBits::new(self.unit.count(self.size)),
        });
    }

    /// Nobody asks any more what changed since this freeze.
    pub(super) fn forget(&mut self, uuid: Uuid) {
        let Some(nth) = self.nth(uuid) else {
            return;
        };
        let gone = self.freezes.remove(nth);
        if let Some(before) = nth.checked_sub(1) {
            self.freezes[before].written_since.add(&gone.written_since);
        }
    }

    /// Somebody else may have written to the origin: nothing is known any more of what changed until now.
    pub(super) fn break_off(&mut self, why: &str) {
        if !self.freezes.is_empty() {
            tracing::warn!(
                why,
                "what changed since earlier freezes is not known any more: the next backups are full ones"
            );
        }
        self.freezes.clear();
    }

    fn nth(&self, uuid: Uuid) -> Option<usize> {
        self.freezes.iter().position(|freeze| freeze.uuid == uuid)
    }

    /// Whether what was written since this freeze is known.
    pub(super) fn remembers(&self, uuid: Uuid) -> bool {
        self.nth(uuid).is_some()
    }

    /// What was written from one freeze to another, if both are remembered in this order.
    pub(super) fn between(&self, older: Uuid, newer: Uuid) -> Option<ChangedMap> {
        let (older, newer) = (self.nth(older)?, self.nth(newer)?);
        let between = self.freezes.get(older..newer)?;
        let mut words = between.first()?.written_since.no_words();
        for freeze in between {
            freeze.written_since.add_to(&mut words);
        }
        Some(ChangedMap::new(self.size, self.unit.bytes(), words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::COPY_UNIT;

    fn lineage() -> Lineage {
        Lineage::new(CopyUnit::default(), 10 * COPY_UNIT)
    }

    fn write(lineage: &Lineage, unit: u64) {
        lineage.mark(ByteRange::new(unit * COPY_UNIT + 5, 1).unwrap());
    }

    fn changed(lineage: &Lineage, older: u128, newer: u128) -> Option<Vec<u64>> {
        let map = lineage.between(Uuid::from_u128(older), Uuid::from_u128(newer))?;
        Some((0..10).filter(|unit| map.is_changed(unit * COPY_UNIT)).collect())
    }

    #[test]
    fn what_changed_between_two_freezes_is_what_was_written_between_them() {
        let mut lineage = lineage();
        write(&lineage, 0);
        for freeze in 1..=4_u64 {
            lineage.begin(Uuid::from_u128(freeze.into()));
            write(&lineage, freeze);
        }
        assert_eq!(changed(&lineage, 1, 2), Some(vec![1]));
        assert_eq!(changed(&lineage, 1, 4), Some(vec![1, 2, 3]));
        assert_eq!(changed(&lineage, 3, 4), Some(vec![3]));
        for (older, newer) in [(2, 1), (2, 2), (0, 4), (1, 5)] {
            assert_eq!(changed(&lineage, older, newer), None, "{older} {newer}");
        }

        lineage.forget(Uuid::from_u128(2));
        lineage.forget(Uuid::from_u128(2));
        assert_eq!(
            changed(&lineage, 1, 3),
            Some(vec![1, 2]),
            "nothing is lost with it"
        );
        lineage.forget(Uuid::from_u128(1));
        assert_eq!(changed(&lineage, 3, 4), Some(vec![3]), "and nothing is added");
        lineage.break_off("a test");
        assert_eq!(changed(&lineage, 3, 4), None);
    }

    #[test]
    fn the_freezes_that_are_remembered_are_bounded() {
        let mut lineage = lineage();
        let max = LINEAGE_MAX as u128;
        for freeze in 1..=max {
            lineage.begin(Uuid::from_u128(freeze));
        }
        assert!(changed(&lineage, 1, max).is_some());
        lineage.begin(Uuid::from_u128(max + 1));
        assert!(changed(&lineage, 1, max).is_none());
        assert!(changed(&lineage, 2, max + 1).is_some());
        assert_eq!(lineage.freezes.len(), LINEAGE_MAX);
    }
}
