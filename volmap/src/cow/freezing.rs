//! Freezes and thaws of an origin, and what is known of the time between them.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

use crate::cow::error::CowError;
use crate::cow::frozen::Frozen;
use crate::cow::gate::ShutGates;
use crate::cow::ground::Survey;
use crate::cow::origin::Origin;
use crate::cow::together::{HeldOrigins, OneFailed, make_all_ready};
use crate::frozen::{ChangedMap, FrozenImage};
use crate::limits::{FROZEN_IMAGES_MAX, SYNC_AHEAD_ROUNDS};
use crate::storage::Standing;

/// One freeze at a time surveys, until there is a frozen image or cannot be one: a gate that is opened at its deadline lets others freeze, and a
/// guard may be renewed only as long as nobody's frozen image relies on it.
///
/// What it keeps is why nothing is known of the time until now, as long as the lineage was not told: for that the gate has to be shut.
#[derive(Default)]
pub(super) struct Surveys(Arc<Mutex<Option<&'static str>>>);

/// What the freeze has that surveys.
pub(super) type Surveying = ArcMutexGuard<RawMutex, Option<&'static str>>;

impl Surveys {
    /// `None`: another freeze went on until then.
    pub(super) fn begin(&self, until: Instant) -> Option<Surveying> {
        self.0.try_lock_arc_until(until)
    }
}

impl Origin {
    /// Freezes the volume at this instant, beside the frozen images that there are.
    ///
    /// Writers wait from the moment that no new write is let in until the map is taken: for writes in flight, an fdatasync of
    /// what was written since the last one ahead of the window, and a FIEMAP (about a microsecond an extent). Seen on a
    /// 1 GiB file: 1–6 ms without writers, 25–85 ms under one that writes 4 KiB at random as fast as it can.
    /// [`Origin::last_freeze_window`] tells how long it was, and so does the log. After [`CopyOptions::window_max`] they go on, and there
    /// is no frozen image.
    ///
    /// [`CopyOptions::window_max`]: crate::cow::CopyOptions::window_max
    ///
    /// # Errors
    /// [`CowError::Busy`] with [`FROZEN_IMAGES_MAX`] frozen images, [`CowError::SyncFailed`] once a sync has failed,
    /// [`CowError::NotReady`], [`CowError::AnotherFreeze`], [`CowError::NotStill`] and [`CowError::HeldTooLong`] where something hangs, and what
    /// the survey and the storage say.
    pub fn freeze(self: &Arc<Self>) -> Result<Arc<dyn FrozenImage>, CowError> {
        let freeze = || {
            let mut held = HeldOrigins::hold(std::slice::from_ref(self), self.options.window_max)?;
            held.take()?;
            held.release(SystemTime::now())
        };
        let mut images = freeze().map_err(|failed: OneFailed| failed.why)?;
        Ok(images.swap_remove(0))
    }

    /// Looks whether it could be frozen, and does what takes long while writers go on: most of what is dirty is written back, and the
    /// copy area is settled.
    ///
    /// # Errors
    /// [`CowError::Busy`], [`CowError::SyncFailed`], [`CowError::NotReady`], and what the storage says.
    pub fn make_ready(self: &Arc<Self>) -> Result<(), CowError> {
        make_all_ready(std::slice::from_ref(self)).map_err(|failed| failed.why)
    }

    /// The same, for as long as it takes; what it waits for, it does not after that.
    pub(super) fn make_ready_by(&self, until: Instant) -> Result<(), CowError> {
        let living = self.living();
        let standing = living.images.iter().filter(|image| !image.is_lost()).count();
        drop(living);
        if standing >= FROZEN_IMAGES_MAX {
            return Err(CowError::Busy);
        }
        if let Some(reason) = self.write_back.failure() {
            return Err(CowError::SyncFailed(reason));
        }
        self.sync_ahead(until)?;
        self.settle_ahead()
    }

    /// Has the copy area settled where a survey would, while writers go on.
    fn settle_ahead(&self) -> Result<(), CowError> {
        // Nobody's frozen image begins meanwhile. Where another freeze goes on it has done that, and if not, the survey does.
        let Some(_surveying) = self.surveys.begin(Instant::now()) else {
            return Ok(());
        };
        // What a witness lost is known before it is renewed, to all that it vouched for.
        let images = self.living().images.clone();
        let standing = images.iter().filter(|image| image.confirm().is_ok()).count();
        if standing == 0 {
            self.ground.settle()?;
        }
        Ok(())
    }

    /// Makes a frozen image behind its gate, the `nth` of these, which are shut for that, for so long `within`.
    pub(super) fn take(
        &self,
        mut surveying: Surveying,
        gates: &ShutGates,
        nth: usize,
        (until, within): (Instant, Duration),
    ) -> Result<(), CowError> {
        let too_long = || CowError::HeldTooLong(within);
        self.sync_begun_by(until).ok_or_else(too_long)??;
        let images = gates.behind(nth, |gate| gate.living.images.clone());
        // What a witness lost is known before it is renewed, to all that it vouched for.
        let images = images.ok_or_else(too_long)?;
        let standing = images.iter().filter(|image| image.confirm().is_ok()).count();
        if standing >= FROZEN_IMAGES_MAX {
            return Err(CowError::Busy);
        }
        let survey = self.survey(standing == 0, &mut surveying);
        let frozen = survey.map(|survey| {
            let slots = Arc::clone(&self.slots);
            Arc::new(Frozen::new(survey, self.copy_unit(), slots, self.clock.next()))
        });
        let made = gates.behind(nth, |gate| {
            let living = &mut *gate.living;
            living.prune();
            if let Some(why) = surveying.take() {
                living.lineage.break_off(why);
            }
            if let Ok(frozen) = &frozen {
                self.slots.image_begun(frozen.units_with_data());
                living.lineage.begin(frozen.description.uuid);
                gate.put(Arc::clone(frozen));
            }
        });
        frozen?;
        made.ok_or_else(too_long)
    }

    /// The survey of a freeze. One that fails may have renewed a guard that somebody had broken, and does not say so.
    fn survey(&self, alone: bool, past_unknown: &mut Option<&'static str>) -> Result<Survey, CowError> {
        let surveyed = self.ground.survey(alone).and_then(|survey| {
            if survey.content.size() != self.size() {
                return Err(CowError::SizeChanged {
                    opened: self.size(),
                    now: survey.content.size(),
                });
            }
            match survey.witness.check() {
                Standing::ContentLost(reason) => Err(CowError::WitnessLost(reason)),
                Standing::Good | Standing::MappingLost(_) => Ok(survey),
            }
        });
        match &surveyed {
            Ok(survey) if !survey.origin_was_open => {}
            Ok(_) => *past_unknown = Some("the origin was opened by somebody else"),
            Err(_) => *past_unknown = Some("a freeze failed"),
        }
        surveyed
    }

    /// Most of the dirty data goes out while writers go on: again and again, since each round leaves only what was written during
    /// it, and the last one is the window's.
    fn sync_ahead(&self, until: Instant) -> Result<(), CowError> {
        for _ in 0..SYNC_AHEAD_ROUNDS {
            let begun = Instant::now();
            self.sync_begun_by(until)
                .ok_or(CowError::NotReady(self.options.ready_max))??;
            if begun.elapsed() < self.options.sync_ahead_enough {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn note_window(&self, window: Duration) {
        *self.last_window.lock().unwrap_or_else(PoisonError::into_inner) = Some(window);
    }

    /// How long the last freeze held writers at most.
    pub fn last_freeze_window(&self) -> Option<Duration> {
        *self.last_window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends `frozen`: first its answers and its hold on the copy area, so that writers who wait for room leave the gate alone;
    /// then, when no write is in flight, its place here. Where a write does not end, that place is empty from now on and goes with the next
    /// freeze: nobody waits for a disk that hangs.
    pub(super) fn thaw(&self, frozen: &Frozen) {
        frozen.end("it was thawed");
        match self.gate.alone(Instant::now() + self.options.window_max) {
            Some(mut living) => living.remove(frozen),
            None => {
                tracing::warn!(frozen = %frozen.description.uuid, "thawed beside a write that does not end: the storage is slow, or hangs")
            }
        }
    }

    /// Whether what is written since the freeze of `frozen` is remembered.
    pub(super) fn remembers(&self, frozen: &Frozen) -> bool {
        self.living().lineage.remembers(frozen.description.uuid)
    }

    /// What was written between the freeze of `older`, of this origin, and that of `newer`, if all of it is remembered.
    pub(super) fn changed_since(&self, older: &Frozen, newer: &Frozen) -> Option<ChangedMap> {
        let living = self.living();
        living
            .lineage
            .between(older.description.uuid, newer.description.uuid)
    }
}
