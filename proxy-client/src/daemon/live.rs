//! How far a job is, told while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use nbd_export::proxy::{CopyAreaFill, JobProgress};

use super::metrics::Metrics;
use crate::pipeline::Tally;
use crate::progress::Observer;

/// The progress of one job: for those who ask, and for the counters.
pub(super) struct Live {
    seen: Mutex<JobProgress>,
    metrics: Arc<Metrics>,
}

impl Live {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            seen: Mutex::default(),
            metrics,
        }
    }

    /// What it was last told.
    pub(super) fn now(&self) -> JobProgress {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Live {
    fn begin(&self, size: u64, before: &Tally) {
        // What was done before is not counted again.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = progress(size, before, seen.copy_area);
    }

    fn update(&self, tally: &Tally) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = progress(seen.size, tally, seen.copy_area);
        self.metrics.count(&seen, &now);
        *seen = now;
    }

    fn copy_area(&self, fill: CopyAreaFill) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).copy_area = Some(fill);
    }
}

fn progress(size: u64, tally: &Tally, copy_area: Option<CopyAreaFill>) -> JobProgress {
    JobProgress {
        size,
        done: tally.bytes_done(),
        direct: tally.bytes_direct,
        nbd: tally.bytes_nbd,
        zero: tally.bytes_zero,
        moved: tally.bytes_moved,
        copy_area,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_before_a_checkpoint_is_not_counted_again() {
        let metrics = Arc::new(Metrics::new());
        let live = Live::new(Arc::clone(&metrics));
        let tally = |bytes_nbd| Tally {
            bytes_nbd,
            ..Tally::default()
        };
        live.begin(100, &tally(60));
        assert_eq!(live.now().done, 60);
        live.update(&tally(61));
        live.update(&tally(70));
        let text = metrics.text(&[], 0);
        assert!(
            text.contains("volume_bytes_total{transport=\"nbd\"} 10\n"),
            "{text}"
        );
    }
}
