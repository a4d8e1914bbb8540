//! File systems that stand still, for a short time.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc;
use volmap::leftovers::{FrozenFileSystem, Ledger, Leftover, Note};
use volmap::sys::file_system;

/// What was frozen, and has to be thawed.
#[derive(Default)]
pub(super) struct Standstill {
    frozen: Arc<Mutex<Frozen>>,
    deadline: Option<Instant>,
    /// The time was over before the order to thaw came.
    expired: bool,
    state_dir: Option<PathBuf>,
    /// A page of it, from the first freeze on.
    ledger: Option<Arc<Ledger>>,
    /// Freezes that may be late.
    freezes: Vec<JoinHandle<()>>,
}

/// A file system that is being frozen, or is, and what says on disk that it may be.
struct FileSystem {
    file: File,
    note: Option<Note>,
}

#[derive(Default)]
struct Frozen {
    file_systems: Vec<FileSystem>,
    /// A freeze that comes to its end only now is undone at once.
    given_up: bool,
}

impl Standstill {
    /// Writes down there what it freezes, before it does: should all that could thaw it be killed at once, the next agent finds it.
    pub(super) fn write_down_in(&mut self, state_dir: Option<PathBuf>) {
        self.state_dir = state_dir;
    }

    fn written_down(&mut self, file: File) -> io::Result<FileSystem> {
        let ledger = match (&self.ledger, &self.state_dir) {
            (Some(ledger), _) => Some(ledger),
            (None, Some(state)) => Some(&*self.ledger.insert(Ledger::open(state)?)),
            (None, None) => None,
        };
        let note = ledger.map(|ledger| ledger.note(&Leftover::FileSystem(FrozenFileSystem::of(&file)?)));
        Ok(FileSystem {
            note: note.transpose()?,
            file,
        })
    }

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
        let file_systems = files
            .into_iter()
            .map(|file| self.written_down(file))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| {
                format!("what is to be frozen cannot be written down in the state directory: {error}")
            })?;
        self.frozen = Arc::default();
        self.expired = false;
        let (done_to, done) = channel();
        let count = file_systems.len();
        for file_system in file_systems {
            let frozen = Arc::clone(&self.frozen);
            let done = done_to.clone();
            // A disk that is dead keeps its own thread, and no other file system frozen.
            let freeze = thread::spawn(move || {
                let outcome = file_system::freeze(&file_system.file);
                let mut frozen = lock(&frozen);
                let mut thawed = None;
                if outcome.is_ok() && !frozen.given_up {
                    frozen.file_systems.push(file_system);
                } else {
                    if outcome.is_ok() {
                        let _ = file_system::thaw(&file_system.file);
                    }
                    thawed = Some(file_system);
                }
                drop(frozen);
                // Nobody listens to those that come too late.
                let _ = done.send(outcome);
                // Crossed out last: that may wait, for others that are frozen.
                drop(thawed);
            });
            self.freezes.push(freeze);
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
        let file_systems = std::mem::take(&mut frozen.file_systems);
        drop(frozen);
        let mut failed = None;
        let mut thawed = Vec::new();
        for FileSystem { file, note } in file_systems {
            match file_system::thaw(&file) {
                Ok(()) => thawed.push(note),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    failed = Some("somebody else thawed a file system".to_owned());
                    thawed.push(note);
                }
                Err(error) => {
                    failed = Some(format!("a file system cannot be thawed: {error}"));
                    // It may be found by this.
                    if let Some(note) = note {
                        note.keep();
                    }
                }
            }
        }
        // Crossed out when all are thawed, as the state directory may lie in one of them.
        drop(thawed);
        failed.map_or(Ok(()), Err)
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.give_up();
        // One that comes to its end later is thawed by its thread, which is there only as long as the process is.
        for freeze in self.freezes.drain(..) {
            let _ = freeze.join();
        }
    }
}

fn lock(frozen: &Mutex<Frozen>) -> MutexGuard<'_, Frozen> {
    frozen.lock().unwrap_or_else(PoisonError::into_inner)
}
