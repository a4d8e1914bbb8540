//! What goes on around a freeze: hooks before and after it, and a guardian that sees to the end of both.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;
use volmap::set::FileSystems;

use super::guardian::{Guardian, Occasion, Outcome};
use crate::config::{Hooks, Stage};
use crate::error::Error;

/// A freeze that is under way.
pub struct Around<'h> {
    hooks: &'h Hooks,
    occasion: Occasion,
    /// Started when it is needed first.
    guardian: Option<Guardian>,
}

impl<'h> Around<'h> {
    /// A freeze of some volumes, as a set if it is one.
    pub(super) fn new(hooks: &'h Hooks, set: Option<&str>, volumes: Vec<String>) -> Self {
        Self {
            hooks,
            occasion: Occasion {
                set: set.map(ToOwned::to_owned),
                volumes,
                frozen: Vec::new(),
            },
            guardian: None,
        }
    }

    /// To be called before anything is held.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Hook`]: nothing may be frozen then.
    pub(super) fn before(&mut self) -> Result<(), Error> {
        self.run(Stage::PreFreeze)
    }

    /// Whether a hook has stopped whatever writes to the volumes.
    pub(super) fn hook_holds(&self) -> bool {
        self.hooks.pre_freeze.is_some()
    }

    /// To be called as soon as everything is frozen.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Hook`]: whatever was stopped may stand still; what was frozen is to be given up.
    pub(super) fn after(&mut self, frozen: &[Uuid]) -> Result<(), Error> {
        self.occasion.frozen = frozen.iter().map(Uuid::to_string).collect();
        self.run(Stage::PostFreeze)
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
            None => Guardian::start(self.hooks, &self.occasion)?,
        };
        Ok(self.guardian.insert(guardian))
    }

    /// Nothing came of it: what the first hook stopped is released by the last.
    pub(super) fn give_up(self) {
        if let Some(guardian) = self.guardian
            && let Err(error) = guardian.end(Outcome::Failed, self.occasion)
        {
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
            guardian: Mutex::new(guardian.map(|guardian| (guardian, self.occasion))),
        }
    }
}

impl FileSystems for Around<'_> {
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
    guardian: Mutex<Option<(Guardian, Occasion)>>,
}

impl Aftermath {
    /// Whether a hook had the application bring its data into order.
    pub(super) fn by_application(&self) -> bool {
        self.by_application
    }

    /// One of the frozen images was ended. After the last one the post-thaw hook runs.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Hook`].
    pub(super) fn one_ended(&self) -> Result<(), Error> {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let last = self
            .guardian
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match last {
            Some((guardian, occasion)) => guardian.end(Outcome::Thawed, occasion),
            None => Ok(()),
        }
    }
}
