//! A backup as the proxy makes it, judged at every commit.

use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::TryStreamExt;
use proxy_client::error::{Error, ErrorKind};
use proxy_client::pipeline::{FetchPolicy, Fetched, Luns, Random, Tally, fetch_batches};
use proxy_client::plan::batch::BatchLimits;
use volmap::identity::Identity;

use crate::source::Source;
use crate::world::{Frozen, World};

/// How a backup ended that did not go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    Completed,
    Gone,
    HostLost,
}

type Job = Pin<Box<dyn Future<Output = Result<Tally, Error>> + Send>>;

pub(crate) struct Backup {
    job: Job,
    frozen: Frozen,
    batches: Arc<AtomicU64>,
}

impl Backup {
    /// `None`: another image is published than the one that was asked for.
    pub(crate) fn begin(world: &World, frozen: Frozen) -> Option<Self> {
        let dice = &world.dice;
        // A proxy need not see every disk.
        let known = world.disks.len() - usize::from(world.disks.len() > 1 && dice.one_in(3));
        let identities: Vec<Identity> = world.disks[..known].iter().map(|d| d.identity.clone()).collect();
        let luns = Luns::new(
            world.disks[..known]
                .iter()
                .map(|disk| world.reads.lun(disk))
                .collect(),
        )
        .choosing_by(Random::of_a_seed(dice.roll(u64::MAX)));
        let source = Source::open(world.wire.clone(), identities)?;
        let policy = FetchPolicy {
            audit_percent: if dice.one_in(3) { 30.0 } else { 0.0 },
            ..FetchPolicy::default()
        };
        let size = frozen.image.size();
        let leaf = [512, 4096, 65_536][dice.roll(3) as usize];
        let limits = BatchLimits {
            leaf,
            data: leaf * (1 + dice.roll(size / leaf + 1)),
            extents: 1 + dice.roll(12) as usize,
            range: leaf * (1 + dice.roll(40)),
        };
        let batches = Arc::new(AtomicU64::new(0));
        let (bytes, counted) = (Arc::clone(&frozen.bytes), Arc::clone(&batches));
        let job = async move {
            let total = Mutex::new((0, Tally::default()));
            let committed = fetch_batches(&source, &luns, policy, 0, None, limits, |_, fetched| {
                ready(Ok(fetched))
            })
            .try_for_each(|fetched| {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut total = total.lock().unwrap();
                total.0 = judge(&fetched, &bytes, total.0);
                total.1.add(&fetched.tally);
                ready(Ok(()))
            });
            pin!(committed).await?;
            let (end, tally) = total.into_inner().unwrap();
            assert_eq!(end, bytes.len() as u64, "a completed backup is complete (I1)");
            assert_eq!(tally.bytes_done(), end);
            Ok(tally)
        };
        Some(Self {
            job: Box::pin(job),
            frozen,
            batches,
        })
    }

    /// Goes on; tells when and how it ended.
    pub(crate) fn poll(&mut self, world: &World) -> Option<Ending> {
        let Poll::Ready(result) = self.job.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            return None;
        };
        world.count(|counts| counts.batches += self.batches.load(Ordering::Relaxed));
        Some(match result {
            Ok(tally) => {
                world.note("a backup is complete", 0);
                world.count(|counts| {
                    counts.direct += tally.bytes_direct;
                    counts.nbd += tally.bytes_nbd;
                    counts.moved += tally.bytes_moved;
                    counts.remapped += tally.bytes_remapped_direct;
                });
                Ending::Completed
            }
            Err(error) => {
                world.note("a backup fails", 0);
                match error.kind() {
                    ErrorKind::FrozenImageGone if world.may_be_gone(&self.frozen) => Ending::Gone,
                    ErrorKind::HostLost if world.drops_connections() => Ending::HostLost,
                    _ => panic!("a backup fails for no reason: {error}"),
                }
            }
        })
    }
}

/// Laws I1 and I2: what is committed is what the volume held at the freeze, and follows what was committed before.
fn judge(fetched: &Fetched, frozen: &[u8], from: u64) -> u64 {
    let mut at = from;
    for stretch in &fetched.stretches {
        assert_eq!(stretch.range.start(), at, "stretches follow each other");
        at = stretch.range.end();
        let expected = &frozen[stretch.range.start() as usize..at as usize];
        match &stretch.bytes {
            Some(bytes) if bytes[..] == *expected => {}
            None if expected.iter().all(|&byte| byte == 0) => {}
            Some(bytes) => {
                let wrong = bytes
                    .iter()
                    .zip(expected)
                    .position(|(got, wanted)| got != wanted)
                    .unwrap_or(0);
                let offset = stretch.range.start() + wrong as u64;
                let record = fetched
                    .records
                    .iter()
                    .find(|record| record.range.contains(offset));
                panic!("a stale byte is committed at {offset}: {record:?}");
            }
            None => panic!("data is committed as zeroes in {}", stretch.range),
        }
    }
    let mut covered = from;
    for record in &fetched.records {
        assert_eq!(record.range.start(), covered, "records follow each other");
        covered = record.range.end();
    }
    assert_eq!(covered, at, "every byte has a receipt");
    at
}
