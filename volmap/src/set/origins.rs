//! The origins of a set: their writers are held by the agent itself, and they are taken meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::cow::{HeldOrigins, OneFailed, Origin};
use crate::freeze::FreezeError;
use crate::frozen::FrozenImage;
use crate::limits::WINDOW_MAX;

/// An origin of a set.
#[derive(Clone)]
pub struct SetOrigin {
    /// Where it is, for people.
    pub path: PathBuf,
    /// What every write to it passes.
    pub origin: Arc<Origin>,
}

impl SetOrigin {
    /// Ahead of the window.
    pub(super) fn make_ready(&self) -> Result<(), FreezeError> {
        self.origin.make_ready().map_err(|source| FreezeError::Origin {
            path: self.path.clone(),
            source,
        })
    }
}

/// The origins of a set, taken. Their writers are held.
pub(super) struct TakenOrigins<'a> {
    origins: &'a [SetOrigin],
    pub(super) held: HeldOrigins,
}

impl<'a> TakenOrigins<'a> {
    /// Holds the writers of all, and takes each.
    pub(super) fn take(origins: &'a [SetOrigin]) -> Result<Self, FreezeError> {
        Self::take_within(origins, WINDOW_MAX)
    }

    /// The same; writers are held for so long at most.
    pub(super) fn take_within(origins: &'a [SetOrigin], within: Duration) -> Result<Self, FreezeError> {
        let all: Vec<Arc<Origin>> = origins.iter().map(|member| Arc::clone(&member.origin)).collect();
        let mut held = HeldOrigins::hold(&all, within).map_err(|failed| of(origins, failed))?;
        held.take().map_err(|failed| of(origins, failed))?;
        Ok(Self { origins, held })
    }

    /// Lets writers go on, once all others stand still, too: they were frozen at the instant `at`.
    pub(super) fn release(self, at: SystemTime) -> Result<Vec<Arc<dyn FrozenImage>>, FreezeError> {
        let Self { origins, held } = self;
        held.release(at).map_err(|failed| of(origins, failed))
    }
}

fn of(origins: &[SetOrigin], failed: OneFailed) -> FreezeError {
    let path = origins.get(failed.nth).map(|member| member.path.clone());
    FreezeError::Origin {
        path: path.unwrap_or_default(),
        source: failed.why,
    }
}
