//! Which units of a volume an overlay has: a bitmap in pages, of which those without a bit are not there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// Units that a page tells of.
const PAGE_UNITS: u64 = PAGE as u64 * 8;

/// A page of the bitmap. The lowest bit of its first byte is its first unit.
pub(super) type Page = [u8; PAGE];

/// The units that there are.
#[derive(Default)]
pub(super) struct Units {
    pages: BTreeMap<u64, Box<Page>>,
    /// Pages that differ from those on the medium.
    changed: BTreeSet<u64>,
}

impl Units {
    /// Takes a page as it was read.
    pub(super) fn put(&mut self, number: u64, page: &Page) {
        if page.iter().any(|byte| *byte != 0) {
            self.pages.insert(number, Box::new(*page));
        }
    }

    /// Whether the first of some units is there, and up to which of them that goes on.
    ///
    /// # Panics
    /// There are none.
    pub(super) fn first_run(&self, units: &Range<u64>) -> (bool, u64) {
        assert!(units.start < units.end, "a run has units");
        let is_there = self.has(units.start);
        let mut at = units.start + 1;
        while at < units.end {
            let page_end = (at / PAGE_UNITS + 1) * PAGE_UNITS;
            let Some(page) = self.pages.get(&(at / PAGE_UNITS)) else {
                if is_there {
                    return (is_there, at);
                }
                at = page_end;
                continue;
            };
            let whole: u8 = if is_there { 0xff } else { 0 };
            let byte = page[index(at)];
            if at.is_multiple_of(8) && byte == whole {
                at += 8;
            } else if bit(byte, at) == is_there {
                at += 1;
            } else {
                return (is_there, at);
            }
        }
        (is_there, units.end)
    }

    fn has(&self, unit: u64) -> bool {
        let page = self.pages.get(&(unit / PAGE_UNITS));
        page.is_some_and(|page| bit(page[index(unit)], unit))
    }

    /// Adds units.
    pub(super) fn add(&mut self, units: Range<u64>) {
        let mut at = units.start;
        while at < units.end {
            let page = self
                .pages
                .entry(at / PAGE_UNITS)
                .or_insert_with(|| Box::new([0; PAGE]));
            let byte = &mut page[index(at)];
            let (mask, step) = match at.is_multiple_of(8) && at + 8 <= units.end {
                true => (0xff, 8),
                false => (1 << (at % 8), 1),
            };
            if *byte & mask != mask {
                *byte |= mask;
                self.changed.insert(at / PAGE_UNITS);
            }
            at += step;
        }
    }

    /// Takes the pages that are not on the medium.
    pub(super) fn take_changed(&mut self) -> Vec<(u64, Box<Page>)> {
        let changed = std::mem::take(&mut self.changed);
        let page = |number| self.pages.get(&number).map(|page| (number, page.clone()));
        changed.into_iter().filter_map(page).collect()
    }

    /// Pages that were taken, and did not come to the medium.
    pub(super) fn still_changed(&mut self, pages: impl Iterator<Item = u64>) {
        self.changed.extend(pages);
    }
}

fn index(unit: u64) -> usize {
    usize::try_from(unit % PAGE_UNITS / 8).expect("a page is small")
}

fn bit(byte: u8, unit: u64) -> bool {
    byte >> (unit % 8) & 1 == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs(units: &Units, all: Range<u64>) -> Vec<(bool, u64)> {
        let mut at = all.start;
        let mut runs = Vec::new();
        while at < all.end {
            let run = units.first_run(&(at..all.end));
            assert!(run.1 > at);
            at = run.1;
            runs.push(run);
        }
        runs
    }

    #[test]
    fn pages_without_a_unit_are_not_there() {
        let mut units = Units::default();
        let far = 5 * PAGE_UNITS;
        assert_eq!(runs(&units, 0..far), [(false, far)]);
        units.put(3, &[0; PAGE]);
        assert!(units.pages.is_empty());
        units.add(PAGE_UNITS - 1..PAGE_UNITS + 9);
        assert_eq!(
            runs(&units, 0..far),
            [(false, PAGE_UNITS - 1), (true, PAGE_UNITS + 9), (false, far)]
        );
        let taken: Vec<u64> = units.take_changed().iter().map(|(number, _)| *number).collect();
        assert_eq!(taken, [0, 1]);
        units.add(PAGE_UNITS..PAGE_UNITS + 9);
        assert!(units.take_changed().is_empty(), "they were there");
        units.still_changed(taken.into_iter());
        assert_eq!(units.take_changed().len(), 2);
    }

    proptest! {
        #[test]
        fn runs_are_what_was_added(added in prop::collection::vec((0..70_000_u64, 1..3000_u64), 0..8), start in 0..70_000_u64) {
            let mut units = Units::default();
            let mut plain = vec![false; 80_000];
            for (at, length) in added {
                units.add(at..at + length);
                plain[usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap()].fill(true);
            }
            // As they come back from the medium.
            let mut again = Units::default();
            for (number, page) in units.take_changed() {
                again.put(number, &page);
            }
            let mut at = start;
            for (is_there, end) in runs(&again, start..80_000) {
                prop_assert!((at..end).all(|unit| plain[usize::try_from(unit).unwrap()] == is_there));
                at = end;
            }
        }
    }
}
