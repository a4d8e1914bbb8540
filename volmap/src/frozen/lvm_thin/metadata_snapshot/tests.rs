//! A pool in memory, and what can come between us and its metadata snapshot.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use tempfile::TempDir;

use super::*;
use crate::frozen::lvm_thin::target::{PoolMode, PoolStatus};
use crate::sys::lease;

const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Default)]
struct State {
    held: Option<u64>,
    next_root: u64,
    messages: Vec<String>,
    /// Releases that fail from here on.
    failing_releases: usize,
    /// Looks until somebody else's is released.
    other_leaves_after: Option<usize>,
    refuses: bool,
    /// In the same block.
    other_takes_after_release: bool,
}

#[derive(Default)]
pub(in crate::frozen::lvm_thin) struct FakePool(Mutex<State>);

impl FakePool {
    pub(in crate::frozen::lvm_thin) const UUID: &str = "LVM-abc-tpool";

    pub(in crate::frozen::lvm_thin) fn held(&self) -> Option<u64> {
        self.state().held
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(in crate::frozen::lvm_thin) fn held_by_other(root: u64) -> Self {
        let pool = Self::default();
        pool.state().held = Some(root);
        pool
    }
}

impl Pool for FakePool {
    fn name(&self) -> &str {
        "vg-pool-tpool"
    }

    fn uuid(&self) -> &str {
        Self::UUID
    }

    fn status(&self) -> Result<PoolStatus, PoolError> {
        let mut state = self.state();
        match &mut state.other_leaves_after {
            Some(0) => {
                state.held = None;
                state.other_leaves_after = None;
            }
            Some(looks) => *looks -= 1,
            None => {}
        }
        Ok(PoolStatus {
            data_blocks: 100,
            data_used: 10,
            metadata_blocks: 100,
            metadata_used: 10,
            errors_if_full: false,
            held_root: state.held,
            mode: PoolMode::Writable,
            needs_check: false,
        })
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let mut state = self.state();
        state.messages.push(message.to_owned());
        match message {
            TAKE if state.refuses => Err(io::ErrorKind::Unsupported.into()),
            TAKE if state.held.is_some() => Err(io::ErrorKind::ResourceBusy.into()),
            TAKE => {
                state.next_root += 1;
                state.held = Some(state.next_root);
                Ok(())
            }
            RELEASE if state.failing_releases > 0 => {
                state.failing_releases -= 1;
                Err(io::ErrorKind::InvalidInput.into())
            }
            RELEASE => match state.held.take() {
                Some(root) => {
                    if state.other_takes_after_release {
                        state.held = Some(root);
                    }
                    Ok(())
                }
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
            other => panic!("a message that no pool knows: {other}"),
        }
    }
}

fn files(run: &TempDir) -> PoolFiles {
    PoolFiles::in_directory(run.path())
}

/// Where the record of the pool is.
fn record(run: &TempDir) -> PathBuf {
    let records = run.path().join("records");
    fs::read_dir(records).unwrap().next().unwrap().unwrap().path()
}

fn take<'a>(pool: &'a FakePool, run: &TempDir) -> Result<MetadataSnapshot<'a>, MetadataSnapshotError> {
    MetadataSnapshot::take(pool, &files(run), PATIENCE)
}

/// What an agent leaves that is killed now: its lock goes, its file stays, and nothing is released.
fn killed(pool: &FakePool, snapshot: MetadataSnapshot<'_>, run: &TempDir) {
    let root = snapshot.root();
    let file = record(run);
    let text = fs::read(&file).unwrap();
    drop(snapshot);
    fs::write(&file, text).unwrap();
    let mut state = pool.state();
    state.held = Some(root);
    state.messages.clear();
}

fn written(run: &TempDir) -> Taken {
    let mut file = files(run)
        .lock("LVM-abc-tpool")
        .unwrap()
        .expect("nobody holds it");
    file.taken().unwrap()
}

#[test]
fn it_is_released_at_the_end() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    let snapshot = take(&pool, &run).unwrap();
    assert_eq!(pool.state().held, Some(snapshot.root()));
    snapshot.stands().unwrap();
    drop(snapshot);
    assert_eq!(pool.state().held, None);
    assert_eq!(written(&run), Taken::Nothing);
}

#[test]
fn a_panic_releases_it() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _snapshot = take(&pool, &run).unwrap();
        panic!("while it was read");
    }));
    assert!(panicked.is_err());
    assert_eq!(pool.state().held, None);
    assert_eq!(written(&run), Taken::Nothing);
}

#[test]
fn what_a_killed_agent_held_is_released_by_the_next() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    killed(&pool, take(&pool, &run).unwrap(), &run);
    assert_eq!(pool.state().held, Some(1));
    let next = take(&pool, &run).unwrap();
    assert_eq!(next.root(), 2);
    assert_eq!(pool.state().messages, [RELEASE, TAKE]);
}

/// An agent was killed before its message, and another program took one since, a reboot later even.
#[test]
fn that_an_agent_was_about_to_take_one_makes_nobody_elses_ours() {
    let (pool, run) = (FakePool::held_by_other(5), tempfile::tempdir().unwrap());
    files(&run)
        .lock(pool.uuid())
        .unwrap()
        .unwrap()
        .write(Taken::Soon)
        .unwrap();
    let refused = take(&pool, &run).map(drop);
    assert!(matches!(
        refused,
        Err(MetadataSnapshotError::HeldByOther { root: 5, .. })
    ));
    assert_eq!(pool.held(), Some(5));
    assert!(pool.state().messages.is_empty());
    assert_eq!(written(&run), Taken::Soon, "a cleanup tells of it");
    pool.state().held = None;
    take(&pool, &run).unwrap();
}

#[test]
fn what_was_released_is_crossed_out_before_somebody_elses_comes_to_lie_there() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    killed(&pool, take(&pool, &run).unwrap(), &run);
    pool.state().other_takes_after_release = true;
    let refused = take(&pool, &run).map(drop);
    assert!(matches!(
        refused,
        Err(MetadataSnapshotError::HeldByOther { root: 1, .. })
    ));
    assert_eq!((pool.held(), written(&run)), (Some(1), Taken::Nothing));
}

/// As where the file system of the records is frozen: an open file that is leased is opened by others once that ends.
#[test]
fn a_record_that_does_not_answer_is_not_waited_for_and_nothing_is_taken_without_it() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    take(&pool, &run).unwrap();
    pool.state().messages.clear();
    let frozen = File::open(record(&run)).unwrap();
    lease::take_read(&frozen).unwrap();
    let refused = take(&pool, &run).map(drop);
    assert!(
        matches!(&refused, Err(MetadataSnapshotError::PoolFile { source, .. })
            if source.kind() == io::ErrorKind::TimedOut),
        "{refused:?}"
    );
    let again = take(&pool, &run).map(drop);
    assert!(
        matches!(again, Err(MetadataSnapshotError::Queue { .. })),
        "no second thread waits: {again:?}"
    );
    assert!(pool.state().messages.is_empty());
    lease::release(&frozen).unwrap();
    MetadataSnapshot::take(&pool, &files(&run), Duration::from_secs(60)).unwrap();
    assert_eq!(written(&run), Taken::Nothing);
}

#[test]
fn what_somebody_else_holds_is_waited_for_and_never_released() {
    let (pool, run) = (FakePool::held_by_other(5), tempfile::tempdir().unwrap());
    let refused = take(&pool, &run).map(drop).unwrap_err();
    assert!(
        matches!(refused, MetadataSnapshotError::HeldByOther { root: 5, .. }),
        "{refused}"
    );
    assert!(
        refused
            .to_string()
            .contains("dmsetup message vg-pool-tpool 0 release_metadata_snap")
    );
    assert_eq!(pool.state().held, Some(5));
    assert!(pool.state().messages.is_empty());
    assert_eq!(written(&run), Taken::Nothing);

    pool.state().other_leaves_after = Some(2);
    take(&pool, &run).unwrap();
}

#[test]
fn what_we_wrote_down_is_not_what_somebody_else_took_later() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    killed(&pool, take(&pool, &run).unwrap(), &run);
    // Released by hand, and taken by another program.
    pool.state().held = Some(9);
    assert!(matches!(
        take(&pool, &run).map(drop),
        Err(MetadataSnapshotError::HeldByOther { root: 9, .. })
    ));
    assert_eq!(pool.state().held, Some(9));
}

#[test]
fn agents_take_turns() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    let first = take(&pool, &run).unwrap();
    assert!(matches!(
        take(&pool, &run).map(drop),
        Err(MetadataSnapshotError::Queue { .. })
    ));
    assert_eq!(pool.state().held, Some(first.root()));
    thread::scope(|scope| {
        let second =
            scope.spawn(|| MetadataSnapshot::take(&pool, &files(&run), Duration::from_secs(60)).map(drop));
        thread::sleep(Duration::from_millis(100));
        drop(first);
        second.join().unwrap().unwrap();
    });
    assert_eq!(pool.state().held, None);
}

#[test]
fn a_release_that_fails_is_tried_again() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    pool.state().failing_releases = 2;
    drop(take(&pool, &run).unwrap());
    assert_eq!(pool.state().held, None);
}

#[test]
fn a_release_that_never_succeeds_is_left_to_the_next() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    let snapshot = take(&pool, &run).unwrap();
    let root = snapshot.root();
    pool.state().failing_releases = usize::try_from(RELEASE_TRIES).unwrap();
    drop(snapshot);
    assert_eq!(pool.state().held, Some(root));
    assert_eq!(written(&run), Taken::Root(root));
    take(&pool, &run).unwrap();
}

#[test]
fn a_release_by_somebody_else_is_noticed() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    let snapshot = take(&pool, &run).unwrap();
    pool.state().held = None;
    assert!(matches!(
        snapshot.stands(),
        Err(MetadataSnapshotError::Lost { .. })
    ));
    pool.state().held = Some(snapshot.root() + 1);
    assert!(snapshot.stands().is_err());
}

#[test]
fn a_pool_that_refuses_leaves_no_trace() {
    let (pool, run) = (FakePool::default(), tempfile::tempdir().unwrap());
    pool.state().refuses = true;
    assert!(matches!(
        take(&pool, &run).map(drop),
        Err(MetadataSnapshotError::Refused { .. })
    ));
    assert_eq!(written(&run), Taken::Nothing);
}
