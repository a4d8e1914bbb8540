use std::task::Poll;

use super::*;
use crate::pipeline::limits::UNREADABLE_MAX;
use crate::pipeline::source::map_whole;
use crate::pipeline::world::{UNIT, World, writing};
use crate::plan::mapped::MappedExtent;

/// What an output was told, in order; it can be resumed, or not.
#[derive(Clone, Default)]
struct Told(Arc<std::sync::Mutex<Vec<&'static str>>>, bool);

impl Output for Told {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let tag = bytes.get(8..12).unwrap_or_default();
        self.0.lock().unwrap().push(match tag {
            b"VBIH" => "header",
            b"VBIC" => "checkpoint",
            _ => "bytes",
        });
        Ok(())
    }

    fn is_resumable(&self) -> bool {
        self.1
    }

    fn make_durable(&mut self) -> Result<()> {
        self.0.lock().unwrap().push("sync");
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

async fn told(resumable: bool) -> Vec<&'static str> {
    let world = World::new(&[false; 2048], 100, Vec::new());
    let output = Told(Arc::default(), resumable);
    let writing = writing(world.size(), Box::new(output.clone()));
    let luns = world.luns();
    let never = std::pin::pin!(std::future::pending());
    let policy = FetchPolicy::default();
    run(&world, &luns, policy, writing, never, &Progress::hidden())
        .await
        .unwrap();
    output.0.lock().unwrap().clone()
}

/// What a checkpoint says of must be durable before it says so.
#[tokio::test]
async fn a_checkpoint_follows_a_sync_of_everything_before_it() {
    let told = told(true).await;
    assert!(told.contains(&"checkpoint"), "{told:?}");
    for (index, what) in told.iter().enumerate() {
        assert_eq!(
            *what == "checkpoint",
            index > 0 && told[index - 1] == "sync",
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_resumed_gets_no_checkpoints() {
    let told = told(false).await;
    assert!(
        !told.contains(&"checkpoint") && !told.contains(&"sync"),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_an_earlier_run_could_not_read_counts() {
    let world = World::new(&[false; 128], 1000, Vec::new());
    let bad = ByteRange::new(0, 1).unwrap();
    world.fail(Some(bad), Some(bad));
    for (before, refused) in [(UNREADABLE_MAX - 4096, false), (UNREADABLE_MAX, true)] {
        let output = Told(Arc::default(), true);
        let mut writing = writing(world.size(), Box::new(output.clone()));
        writing.tally.bytes_nbd = 1;
        writing.tally.unreadable = crate::unreadable::UnreadableRanges::unlisted(before);
        let luns = world.luns();
        let never = std::pin::pin!(std::future::pending());
        let policy = FetchPolicy::default();
        let ended = run(&world, &luns, policy, writing, never, &Progress::hidden()).await;
        let kind = ended.err().map(|error| error.kind());
        assert_eq!(kind, refused.then_some(ErrorKind::HostCannotRead), "{before}");
    }
}

/// A host that gives some bytes late, or never.
struct Holding {
    world: World,
    held: ByteRange,
    late: Option<Duration>,
}

impl FrozenSource for Holding {
    fn size(&self) -> u64 {
        self.world.size()
    }

    async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        self.world.map(range).await
    }

    async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        self.world.generations(range).await
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        if self.held.intersection(range).is_some() {
            match self.late {
                Some(late) => sleep(late).await,
                None => std::future::pending().await,
            }
        }
        self.world.read(range).await
    }
}

/// What the LUN gave for earlier batches is written. Where another error came out first, that would be kept, and gone on with.
#[tokio::test]
async fn a_difference_ends_the_job_whatever_is_waited_for_and_whatever_else_ends_it() {
    // A batch is a leaf.
    let limits = BatchLimits {
        data: LEAF,
        ..BATCHES
    };
    for is_stopped in [false, true] {
        let units = usize::try_from(3 * LEAF / UNIT).unwrap();
        let world = World::new(&vec![false; units], units, Vec::new());
        let luns = world.luns();
        let map = map_whole(&world, ByteRange::new(0, world.size()).unwrap())
            .await
            .unwrap();
        assert_eq!(luns.prove(0, &world, &map).await.unwrap(), Ok(()));
        // In the last batch, while the audit of the one before it goes on for ever. Nothing was moved.
        world.lie_at(world.size() - 1);
        let source = Holding {
            world: world.clone(),
            held: ByteRange::new(LEAF, LEAF).unwrap(),
            late: None,
        };
        // One that cannot be resumed is let go without another look at `stop`.
        let output = Told(Arc::default(), false);
        let policy = FetchPolicy {
            audit_percent: 100.0,
            ..FetchPolicy::default()
        };
        let writing = writing(world.size(), Box::new(output.clone()));
        // Looked at right after the audit, and once more by a job that goes on.
        let mut looks = 0;
        let stop = std::pin::pin!(std::future::poll_fn(|context| {
            if luns.is_distrusted(0) {
                if is_stopped {
                    return Poll::Ready(Error::new(ErrorKind::Interrupted, "stopped"));
                }
                looks += 1;
                assert_eq!(looks, 1, "the job goes on");
                context.waker().wake_by_ref();
            }
            Poll::Pending
        }));
        let progress = Progress::hidden();
        let ended = run_in(limits, &source, &luns, policy, writing, stop, &progress).await;
        let kind = ended.err().unwrap().kind();
        assert_eq!(kind, ErrorKind::AuditFailed, "stopped: {is_stopped}");
    }
}

/// Those behind it are read before it, and must not take the place that it needs to be written.
#[tokio::test]
async fn a_batch_that_is_read_late_does_not_hold_up_itself() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for spool in [
        None,
        Some(Arc::new(Spool::open(directory, Some(1 << 20)).unwrap())),
    ] {
        let units = usize::try_from(12 * LEAF / UNIT).unwrap();
        let world = World::new(&vec![false; units], units, Vec::new());
        let source = Holding {
            world: world.clone(),
            held: ByteRange::new(5 * LEAF, 1).unwrap(),
            late: Some(Duration::from_millis(300)),
        };
        let output = Told(Arc::default(), false);
        let writing = Writing {
            spool,
            ..writing(world.size(), Box::new(output.clone()))
        };
        let limits = BatchLimits {
            data: LEAF,
            ..BATCHES
        };
        let never = std::pin::pin!(std::future::pending());
        let (luns, policy, progress) = (world.luns(), FetchPolicy::default(), Progress::hidden());
        // All through the host.
        luns.distrust(0);
        let run = run_in(limits, &source, &luns, policy, writing, never, &progress);
        let finished = timeout(Duration::from_secs(60), run)
            .await
            .expect("it goes on")
            .unwrap();
        assert_eq!(finished.tally.bytes_done(), world.size());
    }
}

/// The question after the reads of a batch is the question before those of the next (law P0): one for each batch, and not two.
#[tokio::test]
async fn a_quiet_volume_costs_one_question_a_batch() {
    let world = World::new(&[false; 64], 1000, Vec::new());
    let luns = world.luns();
    let map = map_whole(&world, ByteRange::new(0, world.size()).unwrap())
        .await
        .unwrap();
    assert_eq!(luns.prove(0, &world, &map).await.unwrap(), Ok(()));
    let proven = world.questions();
    let limits = BatchLimits {
        leaf: UNIT,
        data: 4 * UNIT,
        extents: 64,
        range: 64 * UNIT,
    };
    let fetched: Vec<Fetched> = fetch_batches(
        &world,
        &luns,
        FetchPolicy::default(),
        0,
        None,
        limits,
        |_, fetched| async { Ok(fetched) },
    )
    .try_collect()
    .await
    .unwrap();
    assert_eq!(fetched.len(), 16);
    assert_eq!(world.questions() - proven, 16);
    assert!(fetched.iter().all(|batch| batch.tally.bytes_direct == 4 * UNIT));
}
