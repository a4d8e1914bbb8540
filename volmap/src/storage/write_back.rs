//! The memory of lost writes.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Something that was written may not be on the device though it can be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what was written before was lost, the device said once: {0}")]
pub(crate) struct LostWrites(String);

/// Syncs that never forget a failure.
///
/// The kernel tells an open file once of pages that it could not write, and shows them as if nothing were until it drops them. All
/// connections share one open file: without this the first flush would eat the error, and every other client would be told that its
/// bytes are safe.
#[derive(Debug, Default)]
pub(crate) struct WriteBack {
    /// Never held over I/O: what was lost is told also while the device hangs.
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody syncs.
    is_under_way: bool,
    failed: Option<LostWrites>,
}

/// Who syncs. Dropped, on whatever way out, it lets the next.
struct Turn<'a>(&'a WriteBack);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().is_under_way = false;
        self.0.ended.notify_all();
    }
}

impl WriteBack {
    /// Syncs; one at a time, because a sync that finds nothing wrong could run beside the one that is being told.
    ///
    /// # Errors
    /// What `sync` says, now or ever.
    pub(crate) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state();
        while state.is_under_way {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.begin(state).sync(sync)
    }

    /// The same, where it can begin before that; `None`: another sync went on until then. However long it takes itself, it is waited for.
    pub(crate) fn sync_begun_by(
        &self,
        until: Instant,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Option<io::Result<()>> {
        let rest = until.saturating_duration_since(Instant::now());
        let (state, _) = (self.ended)
            .wait_timeout_while(self.state(), rest, |state| state.is_under_way)
            .unwrap_or_else(PoisonError::into_inner);
        (!state.is_under_way).then(|| self.begin(state).sync(sync))
    }

    fn begin(&self, mut state: MutexGuard<'_, State>) -> Turn<'_> {
        state.is_under_way = true;
        Turn(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why what was written may be lost.
    pub(crate) fn failure(&self) -> Option<String> {
        self.state().failed.as_ref().map(|lost| lost.0.clone())
    }
}

impl Turn<'_> {
    fn sync(self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let synced = sync();
        // Before the turn ends: nobody syncs between an error that was told here and its record.
        let failed = &mut self.0.state().failed;
        if let Err(error) = &synced {
            tracing::error!(%error, "a sync failed: from now on every flush does");
            failed.get_or_insert_with(|| LostWrites(error.to_string()));
        }
        match &*failed {
            Some(lost) if synced.is_ok() => Err(io::Error::other(lost.clone())),
            _ => synced,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn one_failure_is_told_to_everybody_for_good() {
        let write_back = WriteBack::default();
        write_back.sync(|| Ok(())).unwrap();
        assert_eq!(write_back.failure(), None);
        let first = write_back.sync(|| Err(io::Error::from_raw_os_error(28)));
        assert_eq!(first.unwrap_err().raw_os_error(), Some(28));
        for _ in 0..2 {
            assert!(write_back.sync(|| Ok(())).is_err());
        }
        assert!(write_back.failure().is_some());
    }

    #[test]
    fn a_sync_beside_the_one_that_is_told_does_not_slip_through() {
        let write_back = WriteBack::default();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            let told = scope.spawn(|| {
                write_back.sync(|| {
                    both.wait();
                    // The kernel has told us; the other one asks now, and is not told.
                    thread::sleep(std::time::Duration::from_millis(50));
                    Err(io::ErrorKind::Other.into())
                })
            });
            both.wait();
            assert!(write_back.sync(|| Ok(())).is_err());
            assert!(told.join().unwrap().is_err());
        });
    }

    #[test]
    fn who_waits_for_a_sync_that_hangs_waits_no_longer_than_until_then() {
        let write_back = WriteBack::default();
        let both = Barrier::new(2);
        let soon = || Instant::now() + std::time::Duration::from_millis(20);
        thread::scope(|scope| {
            let hangs = scope.spawn(|| {
                write_back.sync(|| {
                    both.wait();
                    both.wait();
                    Err(io::ErrorKind::Other.into())
                })
            });
            both.wait();
            assert!(write_back.sync_begun_by(soon(), || Ok(())).is_none());
            assert_eq!(write_back.failure(), None, "it waits for nobody");
            both.wait();
            assert!(hangs.join().unwrap().is_err());
            let told = write_back.sync_begun_by(soon(), || Ok(()));
            assert!(told.unwrap().is_err(), "an error is not forgotten");
        });
    }

    #[test]
    fn a_panic_lets_the_next_sync() {
        let write_back = WriteBack::default();
        thread::scope(|scope| {
            let panics = scope.spawn(|| write_back.sync(|| panic!("a test")));
            assert!(panics.join().is_err());
        });
        write_back.sync(|| Ok(())).unwrap();
    }
}
