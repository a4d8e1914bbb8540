//! The places in the copy area: who holds which, and how full it is.
//!
//! One copy of old data serves every frozen image that needs it. So a slot is free again when the last of its holders has let go:
//! the writer that filled it, and each image that a unit moved to it for. The lock here is the last that anybody takes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cow::unit::{CopyUnit, Slot};
use crate::frozen::CopyAreaUse;
use crate::limits::COPY_AREA_WARNINGS;

/// How near its end a copy area is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fullness {
    /// There is room.
    Good,
    /// Past the first of [`COPY_AREA_WARNINGS`].
    Filling,
    /// Past the last of them.
    NearlyFull,
    /// Not a single unit can be kept any more.
    Full,
}

impl Fullness {
    fn of(used: u64, size: u64) -> Self {
        let past = |percent: u64| u128::from(used) * 100 >= u128::from(size) * u128::from(percent);
        let [filling, nearly] = COPY_AREA_WARNINGS;
        if used >= size {
            Self::Full
        } else if past(nearly) {
            Self::NearlyFull
        } else if past(filling) {
            Self::Filling
        } else {
            Self::Good
        }
    }
}

/// All slots of a copy area.
pub(super) struct Slots {
    unit: CopyUnit,
    count: u64,
    room: Mutex<Room>,
    ended: Condvar,
}

struct Room {
    /// Runs of free slots: the first of each, and how many. Neighbours are joined.
    free: BTreeMap<Slot, u64>,
    free_count: u64,
    /// How many hold each slot: at most one writer and every frozen image.
    holders: Vec<u8>,
    /// Units that the newest frozen image may need at most, and so all: what an older one needs and it does not, was written before it.
    needed: u64,
    /// Of these, how many were kept since its freeze.
    kept: u64,
    /// Rises when a frozen image has ended.
    ends: u64,
    /// The worst that was told since there was room.
    told: Fullness,
}

impl Slots {
    /// All free.
    pub(super) fn new(unit: CopyUnit, count: u64) -> Self {
        let len = usize::try_from(count).expect("a copy area's slots can be counted");
        Self {
            unit,
            count,
            room: Mutex::new(Room {
                free: (count > 0).then_some((0, count)).into_iter().collect(),
                free_count: count,
                holders: vec![0; len],
                needed: 0,
                kept: 0,
                ends: 0,
                told: Fullness::Good,
            }),
            ended: Condvar::new(),
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How full the copy area is.
    pub(super) fn fill(&self) -> CopyAreaUse {
        let room = self.room();
        CopyAreaUse {
            used: (self.count - room.free_count) * self.unit.bytes(),
            size: self.count * self.unit.bytes(),
            growth: room.needed.saturating_sub(room.kept) * self.unit.bytes(),
        }
    }

    /// A frozen image begins, of which at most `needed` units will have to be kept.
    pub(super) fn image_begun(&self, needed: u64) {
        let mut room = self.room();
        (room.needed, room.kept) = (needed, 0);
    }

    /// How near its end the copy area is.
    pub(super) fn fullness(&self) -> Fullness {
        Fullness::of(self.count - self.room().free_count, self.count)
    }

    /// Up to `most` consecutive slots for a writer to fill, or `None` when there is not one.
    pub(super) fn take(&self, most: u64) -> Option<Taken<'_>> {
        let mut room = self.room();
        let (first, len) = room.free.pop_first()?;
        let taken = first..first + len.min(most);
        if taken.end < first + len {
            room.free.insert(taken.end, first + len - taken.end);
        }
        room.free_count -= taken.end - taken.start;
        room.kept += taken.end - taken.start;
        for slot in taken.clone() {
            room.holders[index(slot)] = 1;
        }
        let worse = self.worse(&mut room);
        drop(room);
        if let Some(fullness) = worse {
            self.tell(fullness);
        }
        Some(Taken {
            slots: self,
            run: taken,
        })
    }

    /// Another holder for a slot that has one.
    pub(super) fn hold(&self, slot: Slot) {
        let mut room = self.room();
        let holders = &mut room.holders[index(slot)];
        assert!(
            *holders > 0,
            "slot {slot} is nobody's: what is in it may be overwritten"
        );
        *holders += 1;
    }

    /// A frozen image has ended and lets go of its slots; held writers look again.
    pub(super) fn image_ended(&self, slots: impl IntoIterator<Item = Slot>) {
        let mut room = self.room();
        for slot in slots {
            room.let_go(slot);
        }
        room.ends += 1;
        room.told = room
            .told
            .min(Fullness::of(self.count - room.free_count, self.count));
        drop(room);
        self.ended.notify_all();
    }

    /// How many frozen images have ended.
    pub(super) fn ends(&self) -> u64 {
        self.room().ends
    }

    /// Waits until a frozen image has ended since there were `seen`, for as long as `patience`.
    pub(super) fn wait_for_end(&self, seen: u64, patience: Duration) {
        let until = Instant::now() + patience;
        let mut room = self.room();
        while room.ends == seen
            && let Some(left) = until.checked_duration_since(Instant::now())
            && !left.is_zero()
        {
            room = (self.ended.wait_timeout(room, left))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// What has to be told now: each step once, until there was room again.
    fn worse(&self, room: &mut Room) -> Option<Fullness> {
        let now = Fullness::of(self.count - room.free_count, self.count);
        (now > room.told).then(|| {
            room.told = now;
            now
        })
    }

    fn tell(&self, fullness: Fullness) {
        let CopyAreaUse { used, size, .. } = self.fill();
        match fullness {
            Fullness::Good => {}
            Fullness::Filling => tracing::warn!(used, size, "the copy area is filling: end backups and thaw"),
            Fullness::NearlyFull => {
                tracing::warn!(
                    used,
                    size,
                    "the copy area is nearly full: thaw what is not needed"
                );
            }
            Fullness::Full => tracing::error!(used, size, "the copy area is full"),
        }
    }
}

impl Room {
    /// Tells whether the slot is free now.
    fn let_go(&mut self, slot: Slot) -> bool {
        let holders = &mut self.holders[index(slot)];
        *holders = holders.checked_sub(1).expect("who lets go of a slot held it");
        if *holders > 0 {
            return false;
        }
        self.free_count += 1;
        let mut run = (slot, 1);
        if let Some((&first, &len)) = self.free.range(..slot).next_back()
            && first + len == slot
        {
            run = (first, len + 1);
        }
        if let Some(len) = self.free.remove(&(slot + 1)) {
            run.1 += len;
        }
        self.free.insert(run.0, run.1);
        true
    }
}

fn index(slot: Slot) -> usize {
    usize::try_from(slot).expect("a slot of a copy area that was counted")
}

/// Slots that a writer fills. Dropped, they are free unless a frozen image holds them.
pub(super) struct Taken<'a> {
    slots: &'a Slots,
    pub(super) run: Range<Slot>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut room = self.slots.room();
        for slot in self.run.clone() {
            if room.let_go(slot) {
                // Nothing was kept in it.
                room.kept = room.kept.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: u64) -> Slots {
        Slots::new(CopyUnit::default(), count)
    }

    fn free(slots: &Slots) -> Vec<(Slot, u64)> {
        slots
            .room()
            .free
            .iter()
            .map(|(&first, &len)| (first, len))
            .collect()
    }

    #[test]
    fn a_slot_is_free_when_the_last_holder_lets_go() {
        let slots = slots(4);
        let taken = slots.take(3).unwrap();
        assert_eq!(taken.run, 0..3);
        slots.hold(0);
        slots.hold(0);
        slots.hold(2);
        drop(taken);
        assert_eq!(free(&slots), [(1, 1), (3, 1)]);
        slots.image_ended([0, 2]);
        assert_eq!(free(&slots), [(1, 3)]);
        assert_eq!(slots.fill().used, CopyUnit::default().bytes());
        slots.image_ended([0]);
        assert_eq!(free(&slots), [(0, 4)]);
    }

    #[test]
    fn runs_are_as_long_as_there_is_room_side_by_side() {
        let slots = slots(5);
        let whole = slots.take(5).unwrap();
        for slot in [1, 3, 4] {
            slots.hold(slot);
        }
        drop(whole);
        assert_eq!(slots.take(2).unwrap().run, 0..1);
        let (a, b) = (slots.take(2).unwrap(), slots.take(2).unwrap());
        assert_eq!((a.run.clone(), b.run.clone()), (0..1, 2..3));
        assert!(slots.take(1).is_none());
        assert_eq!(slots.fullness(), Fullness::Full);
    }

    #[test]
    fn it_grows_by_what_the_newest_image_still_needs() {
        let slots = slots(10);
        let growth = || slots.fill().growth / CopyUnit::default().bytes();
        let keep = |most| {
            let taken = slots.take(most).unwrap();
            for slot in taken.run.clone() {
                slots.hold(slot);
            }
            taken.run.clone()
        };
        assert_eq!(growth(), 0);
        slots.image_begun(6);
        let first = keep(2);
        assert_eq!(growth(), 4);
        // A copy that failed: it will be made again.
        drop(slots.take(3).unwrap());
        assert_eq!(growth(), 4);
        slots.image_begun(5);
        assert_eq!(growth(), 5);
        keep(1);
        slots.image_ended(first);
        assert_eq!((growth(), slots.fill().used), (4, CopyUnit::default().bytes()));
    }

    #[test]
    #[should_panic(expected = "nobody's")]
    fn a_free_slot_cannot_be_held() {
        slots(1).hold(0);
    }

    #[test]
    fn each_step_of_filling_is_told_once_until_there_is_room_again() {
        let slots = slots(100);
        let mut told = Vec::new();
        for round in 0..2 {
            let mut held = Vec::new();
            for used in 1..=100 {
                let taken = slots.take(1).unwrap();
                slots.hold(taken.run.start);
                held.push(taken.run.start);
                told.push((round, used, slots.room().told));
            }
            slots.image_ended(held);
            assert_eq!(slots.room().told, Fullness::Good);
        }
        told.dedup_by_key(|step| (step.0, step.2));
        let steps: Vec<_> = told.iter().map(|step| (step.1, step.2)).collect();
        let round = [
            (1, Fullness::Good),
            (75, Fullness::Filling),
            (90, Fullness::NearlyFull),
            (100, Fullness::Full),
        ];
        assert_eq!(steps, [round, round].concat());
    }

    #[test]
    fn the_end_of_an_image_is_not_missed() {
        let slots = slots(1);
        let seen = slots.ends();
        slots.image_ended([]);
        let begun = Instant::now();
        slots.wait_for_end(seen, Duration::from_secs(30));
        assert!(begun.elapsed() < Duration::from_secs(20));
        slots.wait_for_end(slots.ends(), Duration::from_millis(1));
    }
}
