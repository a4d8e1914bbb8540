//! Whose turn it is to run hooks. They speak to applications that several freezes may have stopped: one that lets writers go on must not
//! run while another freeze takes its volumes one after another.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::Hooks;

/// What a freeze may take beside its hooks before another one does not wait for it any longer.
const FREEZE_PATIENCE: Duration = Duration::from_secs(60);

/// Shared by all freezes of an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    shared: Arc<(Mutex<Taken>, Condvar)>,
    patience: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// A freeze is between its first hook and its last before the maps.
    freezing: bool,
    /// Post-thaw hooks that run: they do not mind each other.
    endings: usize,
}

/// What is to be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// A freeze, from its first hook on: alone.
    Freeze,
    /// The hook after a thaw: beside others of its kind.
    Ending,
}

impl Taken {
    fn is_free_for(self, part: Part) -> bool {
        !self.freezing && (part == Part::Ending || self.endings == 0)
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    of: Turns,
    part: Part,
}

impl Turns {
    /// With the patience for freezes that have these hooks.
    pub(super) fn of(hooks: &Hooks) -> Self {
        Self {
            shared: Arc::default(),
            // All three of one freeze may fail as late as they can.
            patience: hooks.timeout * 3 + FREEZE_PATIENCE,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn, if it can be had at once.
    pub(super) fn take_now(&self, part: Part) -> Option<Turn> {
        let taken = self.taken();
        taken.is_free_for(part).then(|| self.take_from(taken, part))
    }

    /// A turn, as soon as it can be had; `None` where that takes longer than any freeze should.
    pub(super) fn take(&self, part: Part) -> Option<Turn> {
        let waiting = |taken: &mut Taken| !taken.is_free_for(part);
        let (taken, _) = (self.shared.1)
            .wait_timeout_while(self.taken(), self.patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        taken.is_free_for(part).then(|| self.take_from(taken, part))
    }

    /// A turn, however long that takes.
    pub(super) fn take_whenever(&self, part: Part) -> Turn {
        let waiting = |taken: &mut Taken| !taken.is_free_for(part);
        let taken = (self.shared.1)
            .wait_while(self.taken(), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        self.take_from(taken, part)
    }

    fn take_from(&self, mut taken: MutexGuard<'_, Taken>, part: Part) -> Turn {
        match part {
            Part::Freeze => taken.freezing = true,
            Part::Ending => taken.endings += 1,
        }
        Turn {
            of: self.clone(),
            part,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        match self.part {
            Part::Freeze => taken.freezing = false,
            Part::Ending => taken.endings -= 1,
        }
        drop(taken);
        self.of.shared.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_alone_and_endings_are_not() {
        let turns = Turns::default();
        let freeze = turns.take_now(Part::Freeze).unwrap();
        assert!(turns.take_now(Part::Freeze).is_none() && turns.take_now(Part::Ending).is_none());
        assert!(turns.take(Part::Freeze).is_none(), "its patience ends");
        drop(freeze);
        let endings = [
            turns.take(Part::Ending).unwrap(),
            turns.take(Part::Ending).unwrap(),
        ];
        assert!(turns.take_now(Part::Freeze).is_none());
        drop(endings);
        assert!(turns.take(Part::Freeze).is_some());
    }

    #[test]
    fn who_waits_is_told() {
        let turns = Turns::of(&Hooks::default());
        let freeze = turns.take(Part::Freeze).unwrap();
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| drop(turns.take(Part::Ending).unwrap()));
            let another = scope.spawn(|| drop(turns.take_whenever(Part::Freeze)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!ending.is_finished() && !another.is_finished());
            drop(freeze);
        });
    }
}
