//! Metadata snapshots of thin pools that agents of this machine took and did not release, because they were killed or the machine went
//! down. A pool has one at most, so what is left keeps all others out, and the pool keeps the old metadata blocks for it.

use std::io;
use std::sync::Arc;

use super::metadata_snapshot::release;
use super::pool::{LivePool, Pool};
use super::pool_file::PoolFiles;
use super::pool_record::Taken;
use crate::leftovers::Finding;
use crate::lvm::{Lvm, LvmError};
use crate::sys::device_mapper::Control;

/// What an agent may have left in a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LeftMetadataSnapshot {
    /// Device-mapper UUID of the pool.
    uuid: String,
    /// Its name, while it is active.
    name: Option<String>,
}

impl LeftMetadataSnapshot {
    /// One for each pool that agents of this machine ever worked with; [`LeftMetadataSnapshot::find`] tells what is there of it.
    ///
    /// # Errors
    /// The directory, or the device-mapper.
    pub(crate) fn all(files: &PoolFiles, control: &Arc<Control>) -> io::Result<Vec<Self>> {
        let left = |uuid: String| {
            let pool = live_pool(control, &uuid)?;
            Ok(Self {
                name: pool.map(|pool| pool.name().to_owned()),
                uuid,
            })
        };
        files.pools()?.into_iter().map(left).collect()
    }

    /// The pool, as `dmsetup` knows it; by its UUID while it is not active.
    pub(crate) fn pool(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.uuid)
    }

    /// Looks; what a pool does not have any more is crossed out. [`Finding::Gone`] is one, too, whose pool LVM knows nothing of.
    ///
    /// # Errors
    /// The file of the pool, or the device-mapper.
    pub(crate) fn find(&self, files: &PoolFiles, control: &Arc<Control>) -> io::Result<Finding> {
        let pool = live_pool(control, &self.uuid)?;
        let pool = pool.as_ref().map(|pool| pool as &dyn Pool);
        look(pool, &self.uuid, files, Lvm::knows_pool, false)
    }

    /// Releases it, if it is [`Finding::There`] now.
    ///
    /// # Errors
    /// `ResourceBusy`: it is in use, or unclear. What the pool says.
    pub(crate) fn remove(&self, files: &PoolFiles, control: &Arc<Control>) -> io::Result<()> {
        let pool = live_pool(control, &self.uuid)?;
        let pool = pool.as_ref().map(|pool| pool as &dyn Pool);
        match look(pool, &self.uuid, files, Lvm::knows_pool, true)? {
            Finding::Gone => Ok(()),
            Finding::InUse | Finding::There => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is in use"))
            }
            Finding::Unclear(why) => Err(io::Error::new(io::ErrorKind::ResourceBusy, why)),
        }
    }
}

fn live_pool(control: &Arc<Control>, uuid: &str) -> io::Result<Option<LivePool>> {
    let device = control.device_with(uuid)?;
    device
        .map(|device| LivePool::new(Arc::clone(control), device))
        .transpose()
}

/// What is there, under the lock of the pool's file: an agent has that for as long as it needs the metadata snapshot.
fn look(
    pool: Option<&dyn Pool>,
    uuid: &str,
    files: &PoolFiles,
    knows_pool: impl FnOnce(&str) -> Result<bool, LvmError>,
    releasing: bool,
) -> io::Result<Finding> {
    let Some(mut file) = files.lock(uuid)? else {
        return Ok(Finding::InUse);
    };
    let taken = file.taken()?;
    if taken == Taken::Nothing {
        return Ok(Finding::Gone);
    }
    let Some(pool) = pool else {
        return Ok(match knows_pool(uuid) {
            // What is written down stays: the disks of the pool may be back one day.
            Ok(false) => Finding::Gone,
            Ok(true) => Finding::Unclear("its pool is not active: activate it (vgchange -ay)".to_owned()),
            Err(error) => Finding::Unclear(format!(
                "its pool is not active, and LVM does not tell of it: {error}"
            )),
        });
    };
    let root = match pool.status() {
        Ok(status) => status.held_root,
        Err(error) => return Ok(Finding::Unclear(error.to_string())),
    };
    match (root, taken) {
        (Some(root), Taken::Root(ours)) if ours == root => {
            if !releasing {
                return Ok(Finding::There);
            }
            release(pool)?;
        }
        // Whoever took it, it was not certainly us.
        (Some(root), Taken::Soon) => {
            return Ok(Finding::Unclear(format!(
                "an agent was killed as it was about to take it; if no other program took the one at block {root} meanwhile: dmsetup \
                 message {} 0 release_metadata_snap",
                pool.name()
            )));
        }
        // None, or somebody else's by now.
        _ => {}
    }
    file.write(Taken::Nothing)?;
    Ok(Finding::Gone)
}

#[cfg(test)]
mod tests {
    use super::super::metadata_snapshot::tests::FakePool;
    use super::*;

    fn not_asked(_: &str) -> Result<bool, LvmError> {
        panic!("the pool is active")
    }

    /// What a look finds where the file says `taken` and the pool holds `held`; and what the pool holds after a release.
    fn found(taken: Taken, held: Option<u64>) -> (Finding, Option<u64>) {
        let directory = tempfile::tempdir().unwrap();
        let files = PoolFiles::in_directory(directory.path());
        let pool = held.map_or_else(FakePool::default, FakePool::held_by_other);
        let lock = || files.lock(FakePool::UUID).unwrap().unwrap();
        lock().write(taken).unwrap();
        let shown = look(Some(&pool), FakePool::UUID, &files, not_asked, false).unwrap();
        assert_eq!(pool.held(), held, "it was only shown");
        let released = look(Some(&pool), FakePool::UUID, &files, not_asked, true).unwrap();
        if released == Finding::Gone {
            assert_eq!(lock().taken().unwrap(), Taken::Nothing);
        }
        (shown, pool.held())
    }

    #[test]
    fn what_we_left_is_released_and_nothing_of_others() {
        assert_eq!(found(Taken::Root(7), Some(7)), (Finding::There, None));
        assert_eq!(found(Taken::Root(7), Some(8)), (Finding::Gone, Some(8)));
        assert_eq!(found(Taken::Root(7), None), (Finding::Gone, None));
        assert_eq!(found(Taken::Nothing, Some(7)), (Finding::Gone, Some(7)));
        assert_eq!(found(Taken::Soon, None), (Finding::Gone, None));
        let (shown, held) = found(Taken::Soon, Some(7));
        assert!(matches!(shown, Finding::Unclear(_)));
        assert_eq!(held, Some(7));
    }

    #[test]
    fn what_a_living_agent_holds_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let files = PoolFiles::in_directory(directory.path());
        let pool = FakePool::held_by_other(7);
        let mut living = files.lock(FakePool::UUID).unwrap().unwrap();
        living.write(Taken::Root(7)).unwrap();
        for releasing in [false, true] {
            let found = look(Some(&pool), FakePool::UUID, &files, not_asked, releasing).unwrap();
            assert_eq!((found, pool.held()), (Finding::InUse, Some(7)));
        }
        drop(living);
        assert_eq!(
            look(Some(&pool), FakePool::UUID, &files, not_asked, false).unwrap(),
            Finding::There
        );
    }

    /// Removed with its volume group, or its disks are away: LVM cannot tell one from the other.
    #[test]
    fn a_pool_that_is_gone_is_nobodys_business_and_one_that_comes_back_is() {
        let directory = tempfile::tempdir().unwrap();
        let files = PoolFiles::in_directory(directory.path());
        let pool = FakePool::held_by_other(7);
        let root = Taken::Root(7);
        files.lock(FakePool::UUID).unwrap().unwrap().write(root).unwrap();
        let inactive =
            |answer: Result<bool, LvmError>| look(None, FakePool::UUID, &files, |_| answer, true).unwrap();
        assert!(matches!(inactive(Ok(true)), Finding::Unclear(_)));
        assert!(matches!(inactive(Err(LvmError::Missing)), Finding::Unclear(_)));
        assert_eq!(inactive(Ok(false)), Finding::Gone);
        let back = look(Some(&pool), FakePool::UUID, &files, not_asked, true).unwrap();
        assert_eq!((back, pool.held()), (Finding::Gone, None), "it is released");
    }
}
