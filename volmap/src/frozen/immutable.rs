//! `+i` on a file that several frozen images of this process lie in: the first that wants it sets it, the last takes it away.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::inode_flags;

/// Device and number of an inode.
type Inode = (u64, u64);

/// How many count on the flag of an inode. Locked while the flag is changed, which a dead disk may make long.
type Count = Arc<Mutex<usize>>;

/// The inodes whose flag this process set. Never locked while a file is asked for anything.
static COUNTS: Mutex<BTreeMap<Inode, Count>> = Mutex::new(BTreeMap::new());

/// A share in the flag of a file.
#[derive(Debug)]
pub(super) struct Immutable {
    inode: Inode,
    count: Count,
}

impl Immutable {
    /// Makes the file immutable, or joins those who did. `None`: it was so before any of us, and stays so.
    ///
    /// # Errors
    /// As [`inode_flags::set_immutable`].
    pub(super) fn claim(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let inode = (metadata.dev(), metadata.ino());
        let share = Self {
            inode,
            count: Arc::clone(counts().entry(inode).or_default()),
        };
        let claimed = share.join(file);
        if !matches!(claimed, Ok(true)) {
            share.forget_if_last();
        }
        Ok(claimed?.then_some(share))
    }

    fn join(&self, file: &File) -> io::Result<bool> {
        let mut count = lock(&self.count);
        if *count == 0 {
            if inode_flags::get(file)?.is_immutable() {
                return Ok(false);
            }
            inode_flags::set_immutable(file, true)?;
        }
        *count += 1;
        Ok(true)
    }

    /// Gives the share back; with the last one the flag goes. To be called once.
    ///
    /// # Errors
    /// As [`inode_flags::set_immutable`].
    pub(super) fn give_back(&self, file: &File) -> io::Result<()> {
        let given = {
            let mut count = lock(&self.count);
            *count = count.saturating_sub(1);
            match *count {
                0 => inode_flags::set_immutable(file, false),
                _ => Ok(()),
            }
        };
        self.forget_if_last();
        given
    }

    /// Nobody else has this count in hand: the map's own and ours are all there are, and new ones are made under its lock.
    fn forget_if_last(&self) {
        let mut counts = counts();
        if Arc::strong_count(&self.count) <= 2 && *lock(&self.count) == 0 {
            counts.remove(&self.inode);
        }
    }
}

fn counts() -> MutexGuard<'static, BTreeMap<Inode, Count>> {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock(count: &Count) -> MutexGuard<'_, usize> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}
