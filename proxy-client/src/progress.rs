//! A progress bar on a terminal, silence elsewhere. It counts completed bytes, never issued ones.

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::pipeline::Tally;

/// Shows how far a job is.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// On stderr, if that is a terminal (indicatif hides it otherwise).
    pub fn on_terminal() -> Self {
        let bar = ProgressBar::no_length();
        let template = "{bar:24} {percent:>3}% of {total_bytes}  {bytes_per_sec}  ETA {eta}  {msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar }
    }

    /// Nowhere.
    pub fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
        }
    }

    /// The job begins, for a volume of `size` bytes.
    pub fn begin(&self, size: u64) {
        self.bar.set_length(size);
    }

    /// This much is written to the image.
    pub fn update(&self, tally: &Tally) {
        self.bar.set_message(split(tally));
        self.bar.set_position(tally.bytes_done());
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
