//! What becomes of a writer whose old data cannot be kept.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::cow::preserve::{CopyError, Trouble};
use crate::limits::{HOLD_DEFAULT, HOLD_RETRY};

/// What is done when the copy area is full, or fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFull {
    /// Frozen images end, and the writer goes on.
    #[default]
    Break,
    /// The writer waits for a thaw, and no longer than this; then as with [`OnFull::Break`].
    Hold(Duration),
}

impl OnFull {
    /// A hold for as long as guests bear it.
    pub const HOLD: Self = Self::Hold(HOLD_DEFAULT);
}

/// The writers that wait at this moment.
#[derive(Default)]
pub(super) struct Waiting(Mutex<usize>);

impl Waiting {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) -> (usize, usize) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *count;
        *count = change(before);
        (before, *count)
    }
}

/// A writer's wait; it is over when this is dropped.
pub(super) struct Wait<'a> {
    waiting: &'a Waiting,
    until: Instant,
}

impl<'a> Wait<'a> {
    /// The writer waits from now on, if it may and waiting can help. The first one says so.
    pub(super) fn begin(waiting: &'a Waiting, on_full: OnFull, trouble: &Trouble) -> Option<Self> {
        let OnFull::Hold(limit) = on_full else {
            return None;
        };
        // The origin does not get better by a thaw.
        if matches!(trouble.error, CopyError::Read(_)) {
            return None;
        }
        if waiting.change(|count| count + 1).0 == 0 {
            let error = &trouble.error;
            tracing::error!(%error, ?limit, "writers are held until a frozen image is thawed; then frozen images end");
        }
        Some(Self {
            waiting,
            until: Instant::now() + limit,
        })
    }

    /// How long to wait before the next look; `None`: long enough.
    pub(super) fn patience(&self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.min(HOLD_RETRY))
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.waiting.change(|count| count - 1).1 == 0 {
            tracing::info!("no writer is held any more");
        }
    }
}
