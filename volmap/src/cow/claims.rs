//! Who copies what at this moment.
//!
//! A writer *claims* the units that it copies, a run at a time, and holds no claim while it waits for another's: so two writers
//! of one unit copy it once, both wait for it, and no circle of waiters can form.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::cow::unit::Unit;

/// Units that writers are copying, for whichever frozen images.
#[derive(Default)]
pub(super) struct Claims {
    units: Mutex<HashSet<Unit>>,
    changed: Condvar,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashSet<Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the next run of `units` that are `needed`, at most `most` of them, once no other writer is at its first unit. `None`:
    /// nothing of them is needed any more.
    pub(super) fn claim(
        &self,
        mut units: Range<Unit>,
        most: u64,
        needed: impl Fn(Unit) -> bool,
    ) -> Option<Claim<'_>> {
        // Without the lock: what is not needed now never will be, and most writes need nothing.
        units.start = units.clone().find(|&unit| needed(unit))?;
        let mut claimed = self.lock();
        loop {
            units.start = units.clone().find(|&unit| needed(unit))?;
            if !claimed.contains(&units.start) {
                let end = (units.start + 1..units.end.min(units.start + most))
                    .find(|unit| claimed.contains(unit) || !needed(*unit))
                    .unwrap_or(units.end.min(units.start + most));
                claimed.extend(units.start..end);
                return Some(Claim {
                    claims: self,
                    units: units.start..end,
                });
            }
            claimed = self.changed.wait(claimed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Units that one writer copies. Dropped, on whatever way out, it lets the others look again.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    pub(super) units: Range<Unit>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.claims.lock();
        for unit in self.units.clone() {
            claimed.remove(&unit);
        }
        drop(claimed);
        self.claims.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_nothing_is_needed_or_another_is_at_it() {
        let claims = Claims::default();
        let needed = |unit| unit != 3;
        let claim = |units: Range<Unit>, most| claims.claim(units, most, needed).unwrap();
        assert_eq!(claim(0..10, 16).units, 0..3, "given back at once");
        let first = claim(5..7, 16);
        assert_eq!(first.units, 5..7);
        let second = claim(3..10, 16);
        assert_eq!(second.units, 4..5, "another is at 5");
        let third = claim(7..10, 2);
        assert_eq!(third.units, 7..9);
        assert!(claims.claim(3..4, 16, needed).is_none());
    }
}
