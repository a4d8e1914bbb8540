//! What goes on around a freeze: hooks before and after it, and a guardian that sees to the end of both.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use uuid::Uuid;
use volmap::set::FileSystems;

use super::guardian::{Guardian, Occasion, Outcome};
use super::turns::{Part, Turn, Turns};
use crate::config::{Hooks, Stage};
use crate::error::{Error, ErrorKind};

/// What a freeze with hooks does while another one is between its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WhileAnother {
    /// It waits.
    Waits,
    /// It fails: nobody is to be kept waiting by who asked for it.
    Fails,
}

/// A freeze that is under way.
pub struct Around<'h> {
    hooks: &'h Hooks,
    turns: &'h Turns,
    state_dir: Option<&'h Path>,
    while_another: WhileAnother,
    occasion: Occasion,
    /// Started when it is needed first.
    guardian: Option<Guardian>,
    /// From the first hook until everything is frozen.
    turn: Option<Turn>,
}

impl<'h> Around<'h> {
    /// A freeze of some volumes, as a set if it is one.
    pub(super) fn new(
        hooks: &'h Hooks,
        turns: &'h Turns,
        state_dir: Option<&'h Path>,
        while_another: WhileAnother,
        set: Option<&str>,
        volumes: Vec<String>,
    ) -> Self {
        Self {
            hooks,
            turns,
            state_dir,
            while_another,
            occasion: Occasion {
                set: set.map(ToOwned::to_owned),
                volumes,
                frozen: Vec::new(),
            },
            guardian: None,
            turn: None,
        }
    }

    /// To be called before anything is held.
    ///
    /// # Errors
    /// [`ErrorKind::Hook`], and [`ErrorKind::Busy`] where another freeze has its hooks running: nothing may be frozen then.
    pub(super) fn before(&mut self) -> Result<(), Error> {
        if self.hooks.any() {
            let turn = match self.while_another {
                WhileAnother::Waits => self.turns.take(Part::Freeze),
                WhileAnother::Fails => self.turns.take_now(Part::Freeze),
            };
            let busy = || {
                Error::new(
                    ErrorKind::Busy,
                    "another freeze, or a thaw, has its hooks running",
                )
            };
            self.turn = Some(turn.ok_or_else(busy)?);
        }
        self.run(Stage::PreFreeze)
    }

    /// Whether a hook has stopped whatever writes to the volumes.
    pub(super) fn hook_holds(&self) -> bool {
        self.hooks.pre_freeze.is_some()
    }

    /// To be called as soon as everything is frozen.
    ///
    /// # Errors
    /// [`ErrorKind::Hook`]: whatever was stopped may stand still; what was frozen is to be given up.
    pub(super) fn after(&mut self, frozen: &[Uuid]) -> Result<(), Error> {
        self.occasion.frozen = frozen.iter().map(Uuid::to_string).collect();
        self.run(Stage::PostFreeze)?;
        self.turn = None;
        Ok(())
    }

    fn run(&mut self, stage: Stage) -> Result<(), Error> {
        if !self.hooks.any() {
            return Ok(());
        }
        let occasion = self.occasion.clone();
        self.guardian()?.run(stage, &occasion)
    }

    fn guardian(&mut self) -> Result<&mut Guardian, Error> {
        let guardian = match self.guardian.take() {
            Some(guardian) => guardian,
            None => Guardian::start(self.hooks, self.state_dir, &self.occasion)?,
        };
        Ok(self.guardian.insert(guardian))
    }

    /// Nothing came of it: what the first hook stopped is released by the last.
    pub(super) fn give_up(self) {
        let Some(guardian) = self.guardian else { return };
        let ending = Ending {
            guardian,
            occasion: self.occasion,
            turns: self.turns.clone(),
        };
        let ended = match self.turn {
            // Nobody is let in before what the first hook stopped is released.
            Some(_turn) => ending.end(Outcome::Failed),
            // There is no hook that could come in between.
            None if self.hooks.post_thaw.is_none() => ending.end(Outcome::Failed),
            None => ending.end_in_turn(Outcome::Failed),
        };
        if let Err(error) = ended {
            tracing::error!(%error, "after a freeze that failed");
        }
    }

    /// There are so many frozen images now.
    pub(super) fn keep(self, images: usize) -> Aftermath {
        let mut guardian = self.guardian;
        if self.hooks.post_thaw.is_none()
            && let Some(done) = guardian.take()
            && let Err(error) = done.end(Outcome::Thawed, self.occasion.clone())
        {
            // It has nothing left to do, so nothing is left undone.
            tracing::debug!(%error, "the end of a guardian");
        }
        Aftermath {
            by_application: self.hooks.pre_freeze.is_some(),
            left: AtomicUsize::new(images),
            ending: Mutex::new(guardian.map(|guardian| Ending {
                guardian,
                occasion: self.occasion,
                turns: self.turns.clone(),
            })),
        }
    }
}

/// A guardian that has its last hook to run.
struct Ending {
    guardian: Guardian,
    occasion: Occasion,
    turns: Turns,
}

impl Ending {
    fn end(self, outcome: Outcome) -> Result<(), Error> {
        self.guardian.end(outcome, self.occasion)
    }

    /// When no freeze is between its hooks: what this one lets go on may be what that one has stopped.
    fn end_in_turn(self, outcome: Outcome) -> Result<(), Error> {
        let turns = self.turns.clone();
        if let Some(_turn) = turns.take(Part::Ending) {
            return self.end(outcome);
        }
        // Whoever thaws must not wait for ever for a freeze that hangs.
        let later = thread::Builder::new().spawn(move || {
            let _turn = turns.take_whenever(Part::Ending);
            if let Err(error) = self.end(outcome) {
                tracing::error!(%error, "after a thaw that had to wait");
            }
        });
        let message = match later {
            Ok(_) => "the post-thaw hook waits for a freeze that does not come to its end".to_owned(),
            Err(error) => format!("no thread for the post-thaw hook: {error}"),
        };
        Err(Error::new(ErrorKind::Hook, message))
    }
}

impl FileSystems for Around<'_> {
    fn get_ready(&mut self) -> Result<(), String> {
        self.guardian().map(drop).map_err(|error| error.to_string())
    }

    fn freeze(&mut self, on: &[&File]) -> Result<(), String> {
        self.guardian().map_err(|error| error.to_string())?.freeze(on)
    }

    fn thaw(&mut self) -> Result<(), String> {
        match &mut self.guardian {
            Some(guardian) => guardian.thaw(),
            None => Err("nothing was frozen".to_owned()),
        }
    }
}

/// What is left to do when frozen images of one freeze end.
pub(super) struct Aftermath {
    by_application: bool,
    left: AtomicUsize,
    ending: Mutex<Option<Ending>>,
}

impl Aftermath {
    /// Whether a hook had the application bring its data into order.
    pub(super) fn by_application(&self) -> bool {
        self.by_application
    }

    /// One of the frozen images was ended. After the last one the post-thaw hook runs.
    ///
    /// # Errors
    /// [`ErrorKind::Hook`].
    pub(super) fn one_ended(&self) -> Result<(), Error> {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let last = self.ending.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.map_or(Ok(()), |ending| ending.end_in_turn(Outcome::Thawed))
    }
}
