//! A progress bar on a terminal, silence elsewhere. It counts completed bytes, never issued ones.

use std::fmt;
use std::sync::Arc;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use nbd_export::proxy::CopyAreaFill;

use crate::pipeline::Tally;

/// Who else wants to know how far a backup is. Called often, and must not wait.
pub trait Observer: Send + Sync {
    /// The job begins, for a volume of `size` bytes, of which an earlier one has done `before`.
    fn begin(&self, size: u64, before: &Tally);

    /// So much is committed.
    fn update(&self, tally: &Tally);

    /// The host's copy area is so full.
    fn copy_area(&self, fill: CopyAreaFill);
}

/// Shows how far a job is.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    observer: Option<Arc<dyn Observer>>,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("bar", &self.bar)
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// On stderr, if that is a terminal (indicatif hides it otherwise).
    pub fn on_terminal() -> Self {
        let bar = ProgressBar::no_length();
        let template = "{bar:24} {percent:>3}% of {total_bytes}  {bytes_per_sec}  ETA {eta}  {msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar, observer: None }
    }

    /// Nowhere.
    pub fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            observer: None,
        }
    }

    /// To an observer alone.
    pub fn observed(observer: Arc<dyn Observer>) -> Self {
        Self {
            bar: ProgressBar::hidden(),
            observer: Some(observer),
        }
    }

    /// The job begins, for a volume of `size` bytes, of which an earlier one has done `before`.
    pub fn begin(&self, size: u64, before: &Tally) {
        self.bar.set_length(size);
        if let Some(observer) = &self.observer {
            observer.begin(size, before);
        }
    }

    /// This much is written to the image.
    pub fn update(&self, tally: &Tally) {
        self.bar.set_message(split(tally));
        self.bar.set_position(tally.bytes_done());
        if let Some(observer) = &self.observer {
            observer.update(tally);
        }
    }

    /// The host's copy area is so full.
    pub fn copy_area(&self, fill: CopyAreaFill) {
        if let Some(observer) = &self.observer {
            observer.copy_area(fill);
        }
    }

    /// This much of a volume of `size` bytes is done.
    pub fn update_bytes(&self, done: u64, size: u64) {
        self.bar.set_length(size);
        self.bar.set_position(done);
    }

    /// The job has ended, well or not: the bar goes.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// How the bytes were got, in a few words.
pub fn split(tally: &Tally) -> String {
    let mut text = format!(
        "direct {}, nbd {}, zero {}",
        HumanBytes(tally.bytes_direct),
        HumanBytes(tally.bytes_nbd),
        HumanBytes(tally.bytes_zero)
    );
    if tally.bytes_moved > 0 {
        text.push_str(&format!(", read again {}", HumanBytes(tally.bytes_moved)));
    }
    text
}
