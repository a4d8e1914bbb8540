//! The metadata snapshot of a pool: the one view of its trees that stays as it is while the pool goes on.
//!
//! A pool has at most one, whoever took it, and it survives processes and reboots. So:
//!
//! * agents of ours take it one after the other, under the lock of a file;
//! * what was taken is written down with its block, so that the next of us, or a cleanup, releases what one of us left behind when it was
//!   killed;
//! * what we find, and have not written down by its block, is somebody else's (`thin_dump -m`, another backup program): it is waited for,
//!   and never released. That one of us was about to take one when it was killed does not make the next one that is there ours;
//! * ours is released when this value is dropped, which an error or a panic does as well.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::pool::{Pool, PoolError};
use super::pool_file::{PoolFile, PoolFiles};
use super::pool_record::Taken;

const TAKE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

/// Longest time between two looks at who holds it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Times that a release is tried, and the pause between them.
const RELEASE_TRIES: u32 = 5;
const RELEASE_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no metadata snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum MetadataSnapshotError {
    #[error(
        "another program holds the metadata snapshot of pool {pool} (at block {root}) and did not release it within {} seconds; if \
         none is at work, one was killed: dmsetup message {pool} 0 {RELEASE}", patience.as_secs()
    )]
    HeldByOther {
        pool: String,
        root: u64,
        patience: Duration,
    },
    #[error(
        "another agent works with the metadata of pool {pool} for more than {} seconds already", patience.as_secs()
    )]
    Queue { pool: String, patience: Duration },
    #[error("the pool {pool} gives no metadata snapshot: {source}")]
    Refused { pool: String, source: io::Error },
    #[error("the pool {pool} lost its metadata snapshot while it was read")]
    Lost { pool: String },
    #[error("the metadata snapshot of pool {pool} cannot be written down: {source}")]
    PoolFile { pool: String, source: io::Error },
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// A metadata snapshot of ours; released when dropped.
pub(super) struct MetadataSnapshot<'a> {
    pool: &'a dyn Pool,
    root: u64,
    pool_file: PoolFile,
}

impl<'a> MetadataSnapshot<'a> {
    /// Takes the metadata snapshot of a pool, waiting at most `patience` for whoever has it.
    ///
    /// # Errors
    /// [`MetadataSnapshotError`]; none is held then by us.
    pub(super) fn take(
        pool: &'a dyn Pool,
        files: &PoolFiles,
        patience: Duration,
    ) -> Result<Self, MetadataSnapshotError> {
        let deadline = Instant::now() + patience;
        let name = || pool.name().to_owned();
        let no_file = |source| MetadataSnapshotError::PoolFile { pool: name(), source };
        let mut pool_file = loop {
            if let Some(file) = files.lock(pool.uuid()).map_err(no_file)? {
                break file;
            }
            wait(deadline).ok_or_else(|| MetadataSnapshotError::Queue {
                pool: name(),
                patience,
            })?;
        };
        // Nobody else writes to it now.
        let mut taken = pool_file.taken().map_err(no_file)?;
        loop {
            if let Some(root) = pool.status()?.held_root {
                if taken == Taken::Root(root) {
                    tracing::warn!(
                        pool = pool.name(),
                        root,
                        "an agent was killed while it held the metadata snapshot of a thin pool; it is released now"
                    );
                    release(pool)
                        .map_err(|source| MetadataSnapshotError::Refused { pool: name(), source })?;
                    // Somebody else's may come to lie in the same block.
                    taken = Taken::Nothing;
                    pool_file.write(taken).map_err(no_file)?;
                    continue;
                }
                wait(deadline).ok_or_else(|| MetadataSnapshotError::HeldByOther {
                    pool: name(),
                    root,
                    patience,
                })?;
                continue;
            }
            // Written down first: killed behind the message, we leave a trace.
            if let Err(source) = pool_file.write(Taken::Soon) {
                // It may yet be written, and is not true.
                drop(pool_file.write(Taken::Nothing));
                return Err(no_file(source));
            }
            taken = Taken::Nothing;
            match pool.send(TAKE) {
                Ok(()) => break,
                // Somebody was faster.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    pool_file.write(Taken::Nothing).map_err(no_file)?;
                    wait(deadline).ok_or_else(|| MetadataSnapshotError::Refused {
                        pool: name(),
                        source: error,
                    })?;
                }
                Err(source) => {
                    pool_file.write(Taken::Nothing).map_err(no_file)?;
                    return Err(MetadataSnapshotError::Refused { pool: name(), source });
                }
            }
        }
        // From here on it is released, whatever happens.
        let mut snapshot = Self {
            pool,
            root: 0,
            pool_file,
        };
        snapshot.root = pool
            .status()?
            .held_root
            .ok_or_else(|| MetadataSnapshotError::Lost { pool: name() })?;
        snapshot
            .pool_file
            .write(Taken::Root(snapshot.root))
            .map_err(no_file)?;
        Ok(snapshot)
    }

    /// The block of its superblock.
    pub(super) fn root(&self) -> u64 {
        self.root
    }

    /// Whether it was there all the time: asked after the trees were read. Somebody who released it let the pool use their blocks again.
    ///
    /// # Errors
    /// [`MetadataSnapshotError::Lost`].
    pub(super) fn stands(&self) -> Result<(), MetadataSnapshotError> {
        if self.pool.status()?.held_root == Some(self.root) {
            Ok(())
        } else {
            Err(MetadataSnapshotError::Lost {
                pool: self.pool.name().to_owned(),
            })
        }
    }
}

impl Drop for MetadataSnapshot<'_> {
    fn drop(&mut self) {
        let pool = self.pool.name();
        match release(self.pool) {
            Ok(()) => {
                if let Err(error) = self.pool_file.write(Taken::Nothing) {
                    tracing::warn!(%error, pool, "a released metadata snapshot could not be crossed out");
                }
            }
            // The file says so, too: the next of us tries again.
            Err(error) => tracing::warn!(
                %error,
                pool,
                "the metadata snapshot of a thin pool could not be released, so nobody else can take one: dmsetup message {pool} 0 {RELEASE}"
            ),
        }
    }
}

/// Sleeps a little; `None` when the time is up.
fn wait(deadline: Instant) -> Option<()> {
    let left = deadline.checked_duration_since(Instant::now())?;
    thread::sleep(left.min(LOOK_AGAIN));
    Some(())
}

pub(super) fn release(pool: &dyn Pool) -> io::Result<()> {
    let mut tries = 1;
    loop {
        let error = match pool.send(RELEASE) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Somebody else did it already.
        if pool.status().is_ok_and(|status| status.held_root.is_none()) {
            return Ok(());
        }
        if tries == RELEASE_TRIES {
            return Err(error);
        }
        tries += 1;
        thread::sleep(RELEASE_PAUSE);
    }
}

#[cfg(test)]
pub(super) mod tests;
