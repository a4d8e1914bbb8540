//! One path to a LUN, and what is thought of it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::libc;
use volmap::range::ByteRange;

use super::limits::FAILURES_IN_A_ROW;
use super::memory::{Memory, MemoryPool};
use super::reader::{Geometry, LunReader};
use super::threads::ReadThreads;

/// What the system says of a device that is not there any more.
const VANISHED: [i32; 5] = [
    libc::ENODEV,
    libc::ENXIO,
    libc::ENOLINK,
    libc::ESHUTDOWN,
    libc::EBADF,
];

/// A path to a LUN. Once it is given up nothing is read by it again in this job: a read that hangs keeps its thread.
pub struct LunPath {
    /// Where the operator said that the LUN is.
    pub path: PathBuf,
    pub(super) reader: Arc<dyn LunReader>,
    threads: ReadThreads,
    bytes: AtomicU64,
    failures: AtomicU64,
    in_a_row: AtomicU32,
    given_up: OnceLock<String>,
}

impl LunPath {
    pub(super) fn new(path: PathBuf, reader: Box<dyn LunReader>) -> Self {
        Self {
            path,
            reader: reader.into(),
            threads: ReadThreads::default(),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            in_a_row: AtomicU32::new(0),
            given_up: OnceLock::new(),
        }
    }

    /// Size and block size of what it leads to.
    pub fn geometry(&self) -> Option<Geometry> {
        self.reader.geometry()
    }

    /// Bytes that were wanted of the LUN and read by it.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reads by it that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Why nothing is read by it any more.
    pub fn given_up(&self) -> Option<&str> {
        self.given_up.get().map(String::as_str)
    }

    /// Nothing more is read by it.
    pub fn give_up(&self, reason: &str) {
        if self.given_up.set(reason.to_owned()).is_ok() {
            tracing::warn!(lun = %self.path.display(), reason, "nothing more is read by this path");
            self.threads.close();
        }
    }

    /// Reads whole blocks, at least `needed` bytes of them, to memory of `pool`.
    pub(super) async fn read(
        &self,
        blocks: ByteRange,
        needed: usize,
        pool: &MemoryPool,
        deadline: Option<Duration>,
    ) -> io::Result<Memory> {
        let threads = self.threads.within(deadline);
        let read = Arc::clone(&self.reader).read_meanwhile(blocks, pool, &threads);
        let read = read.await.and_then(|(memory, filled)| {
            if filled < needed {
                return Err(io::Error::other("a read came back short"));
            }
            Ok(memory)
        });
        match read {
            Ok(memory) => {
                self.in_a_row.store(0, Ordering::Relaxed);
                self.bytes.fetch_add(needed as u64, Ordering::Relaxed);
                Ok(memory)
            }
            Err(error) => {
                self.note(&error, blocks);
                // What had no turn says why the path was given up.
                Err(match self.given_up() {
                    Some(reason) if is_not_tried(&error) => io::Error::new(error.kind(), reason.to_owned()),
                    _ => error,
                })
            }
        }
    }

    /// What a failed read makes of the path.
    fn note(&self, error: &io::Error, blocks: ByteRange) {
        // Nothing is wrong with a path by which something may not be read, and nothing new with one that was given up before it was tried.
        if error.kind() == io::ErrorKind::PermissionDenied || is_not_tried(error) {
            return;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        let vanished = error.raw_os_error().is_some_and(|code| VANISHED.contains(&code));
        let hung = error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none();
        if !(vanished || hung || in_a_row >= FAILURES_IN_A_ROW) {
            tracing::warn!(lun = %self.path.display(), %blocks, %error, "a direct read failed");
            return;
        }
        self.give_up(&error.to_string());
    }
}

/// Whether a read was not even tried, because its path was given up before it had a turn.
fn is_not_tried(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected && error.raw_os_error().is_none()
}
