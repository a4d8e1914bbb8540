//! The memory of lost writes.

use std::io;
use std::sync::{Mutex, PoisonError};

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
    failed: Mutex<Option<LostWrites>>,
}

impl WriteBack {
    /// Syncs; one at a time, because a sync that finds nothing wrong could run beside the one that is being told.
    ///
    /// # Errors
    /// What `sync` says, now or ever.
    pub(crate) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let synced = sync();
        if let Err(error) = &synced {
            tracing::error!(%error, "a sync failed: from now on every flush does");
            failed.get_or_insert_with(|| LostWrites(error.to_string()));
        }
        match &*failed {
            Some(lost) if synced.is_ok() => Err(io::Error::other(lost.clone())),
            _ => synced,
        }
    }

    /// Why what was written may be lost.
    pub(crate) fn failure(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map(|lost| lost.0.clone())
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
}
