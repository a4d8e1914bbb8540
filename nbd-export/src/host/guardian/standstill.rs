//! File systems that stand still, for a short time.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use volmap::sys::file_system;

/// What was frozen, and has to be thawed.
#[derive(Default)]
pub(super) struct Standstill {
    frozen: Arc<Mutex<Frozen>>,
    deadline: Option<Instant>,
    /// The time was over before the order to thaw came.
    expired: bool,
}

#[derive(Default)]
struct Frozen {
    file_systems: Vec<File>,
    /// A freeze that comes to its end only now is undone at once.
    given_up: bool,
}

impl Standstill {
    /// Freezes the file systems that these paths lie in, all at once, since each writes back what is dirty first. Nothing is frozen
    /// after an error.
    pub(super) fn freeze(&mut self, on: &[PathBuf], within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        let files = on
            .iter()
            .map(|path| {
                File::options()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path)
                    .map_err(|error| format!("{}: {error}", path.display()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.frozen = Arc::default();
        self.expired = false;
        let (done_to, done) = channel();
        let count = files.len();
        for file in files {
            let frozen = Arc::clone(&self.frozen);
            let done = done_to.clone();
            // A disk that is dead keeps its own thread, and no other file system frozen.
            thread::spawn(move || {
                let outcome = file_system::freeze(&file);
                let mut frozen = lock(&frozen);
                if outcome.is_ok() {
                    if frozen.given_up {
                        let _ = file_system::thaw(&file);
                    } else {
                        frozen.file_systems.push(file);
                    }
                }
                // Nobody listens to those that come too late.
                let _ = done.send(outcome);
            });
        }
        for _ in 0..count {
            let rest = deadline.saturating_duration_since(Instant::now());
            let failed = match done.recv_timeout(rest) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                    "somebody else has frozen it".to_owned()
                }
                Ok(Err(error)) => format!("a file system cannot be frozen: {error}"),
                Err(_) => format!("not frozen within {} s", within.as_secs()),
            };
            // That one failed says more than that another could not be thawed after it.
            let _ = self.give_up();
            return Err(failed);
        }
        self.deadline = Some(deadline);
        Ok(())
    }

    /// Until when it may stand.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Thaws, if the time is over.
    pub(super) fn look(&mut self) {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let thawed = self.give_up();
            self.expired = true;
            // Not before they are thawed: it may be written to one of them.
            tracing::warn!(?thawed, "file systems were frozen for as long as they may be");
        }
    }

    /// Thaws on order; an error if they were not frozen until now.
    pub(super) fn thaw(&mut self) -> Result<(), String> {
        let thawed = self.give_up();
        if std::mem::take(&mut self.expired) {
            return Err("it took too long, and they were thawed at the deadline".to_owned());
        }
        thawed
    }

    /// Thaws whatever is frozen, now or by a thread that is late.
    pub(super) fn give_up(&mut self) -> Result<(), String> {
        self.deadline = None;
        let mut frozen = lock(&self.frozen);
        frozen.given_up = true;
        let mut failed = None;
        for file in frozen.file_systems.drain(..) {
            if let Err(error) = file_system::thaw(&file) {
                failed = Some(match error.raw_os_error() {
                    Some(libc::EINVAL) => "somebody else thawed a file system".to_owned(),
                    _ => format!("a file system cannot be thawed: {error}"),
                });
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.give_up();
    }
}

fn lock(frozen: &Mutex<Frozen>) -> MutexGuard<'_, Frozen> {
    frozen.lock().unwrap_or_else(PoisonError::into_inner)
}
