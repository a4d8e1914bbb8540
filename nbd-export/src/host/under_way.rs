//! Counts what must not be cut off by the end of the process.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The number of things that are under way.
#[derive(Clone, Default)]
pub(super) struct UnderWay {
    shared: Arc<(Mutex<usize>, Condvar)>,
}

/// One of them, until it is dropped.
pub(super) struct Work {
    of: UnderWay,
}

impl UnderWay {
    /// Begins something.
    pub(super) fn begin(&self) -> Work {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Work { of: self.clone() }
    }

    /// Waits until nothing is under way; whether that came in time.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let (count, changed) = &*self.shared;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, _) = changed
            .wait_timeout_while(count, patience, |count| *count > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *count == 0
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let (count, changed) = &*self.of.shared;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}
