//! The pipeline itself: batches are fetched and encoded side by side, and written one after the other.

use std::collections::VecDeque;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{Stream, TryStreamExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use volmap::range::ByteRange;

use super::delta::Delta;
use super::fetch::{FetchPolicy, Fetched, FetchedStretch, Fetcher, same_record};
use super::limits::{
    BATCH_DATA, BATCH_EXTENTS, BATCH_RANGE, BATCHES_IN_FLIGHT, BATCHES_IN_MEMORY, CHECKPOINT_BYTES,
    CHECKPOINT_TIME, ENCODERS_MAX, SETTLE,
};
use super::luns::Luns;
use super::queue::{Encoded, Place, Queue};
use super::source::FrozenSource;
use super::spool::Spool;
use super::stopped_writer::StoppedWriter;
use super::tally::Tally;
use super::work::{Work, work};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Content, DEFAULT_LEVEL, EncodedPiece, Encoder, End, Kind, LEAF, Record, compress_piece};
use crate::output::Output;
use crate::plan::batch::BatchLimits;
use crate::progress::Progress;

/// Batches of a backup.
pub const BATCHES: BatchLimits = BatchLimits {
    leaf: LEAF,
    data: BATCH_DATA,
    extents: BATCH_EXTENTS,
    range: BATCH_RANGE,
};

/// How often the writer makes durable what it has, and puts a checkpoint behind it: whenever one of the two is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointEvery {
    /// Bytes of the image.
    pub bytes: u64,
    /// Time.
    pub time: Duration,
}

impl Default for CheckpointEvery {
    fn default() -> Self {
        Self {
            bytes: CHECKPOINT_BYTES,
            time: CHECKPOINT_TIME,
        }
    }
}

/// What is written, from where on, and to where.
pub struct Writing {
    /// The image.
    pub encoder: Encoder,
    /// What the output gets first.
    pub first: Bytes,
    /// Where it goes.
    pub output: Box<dyn Output>,
    /// What was done before, where the image was begun by another run.
    pub tally: Tally,
    /// What of it is as in the parent image; `None` for a full one.
    pub delta: Option<Arc<Delta>>,
    /// When checkpoints are due; `None` where nobody could resume.
    pub checkpoints: Option<CheckpointEvery>,
    /// Where batches wait for a slow output; without one, few are read ahead of it.
    pub spool: Option<Arc<Spool>>,
    /// Set when everything was read and confirmed: what becomes of the frozen image then does not matter any more.
    pub is_all_read: Arc<AtomicBool>,
}

/// A job that has written everything, and has committed nothing yet.
pub struct Finished {
    /// What became of the bytes.
    pub tally: Tally,
    /// The END of the image.
    pub end: End,
    /// The output, to be committed.
    pub output: Box<dyn Output>,
}

/// What the writer is told.
enum Order {
    Write(Box<Encoded>),
    /// No more comes, but what is written is to be gone on with: it gets a checkpoint.
    Settle,
    /// That was everything. Without this order the end of the orders is not the end of the work.
    Finish,
}

/// Backs `source` up from where the encoder stands: fetches, encodes and writes, unless `stop` says before the end why it must not go
/// on. On an error nothing is committed, and the output has been let go.
///
/// # Errors
/// The first error of any stage.
pub async fn run<S: FrozenSource>(
    source: &S,
    luns: &Luns,
    policy: FetchPolicy,
    writing: Writing,
    stop: Pin<&mut (impl Future<Output = Error> + Send)>,
    progress: &Progress,
) -> Result<Finished> {
    run_in(BATCHES, source, luns, policy, writing, stop, progress).await
}

/// The same, in batches of a size.
async fn run_in<S: FrozenSource>(
    limits: BatchLimits,
    source: &S,
    luns: &Luns,
    policy: FetchPolicy,
    writing: Writing,
    mut stop: Pin<&mut (impl Future<Output = Error> + Send)>,
    progress: &Progress,
) -> Result<Finished> {
    let (remover, lets_go) = (writing.output.remover()?, writing.output.is_resumable());
    let (to_writer, orders) = mpsc::channel(1);
    let writer_progress = progress.clone();
    let start = writing.encoder.position();
    let delta = writing.delta.clone();
    let policy = policy.going_on_from(&writing.tally);
    let queue = Queue::new(writing.spool.clone());
    let is_all_read = Arc::clone(&writing.is_all_read);
    let writer_queue = queue.clone();
    let writer = tokio::task::spawn_blocking(move || write(writing, orders, &writer_queue, &writer_progress));

    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let encoders = Arc::new(Semaphore::new(processors.min(ENCODERS_MAX)));
    let encoded = fetch_batches(
        source,
        luns,
        policy,
        start,
        delta.clone(),
        limits,
        |place, fetched| {
            let encoded = encode(fetched, place, delta.clone(), Arc::clone(&encoders));
            let queue = queue.clone();
            async move { queue.enter(encoded.await?).await }
        },
    );
    let mut encoded = std::pin::pin!(encoded);
    let feed = async {
        // Batches go on being fetched, and judged, while the writer waits for its disk: a sync may take seconds.
        let (mut ready, mut ended) = (VecDeque::new(), false);
        while !(ended && ready.is_empty()) {
            tokio::select! {
                place = to_writer.reserve(), if !ready.is_empty() => match (place, ready.pop_front()) {
                    (Ok(place), Some(batch)) => place.send(Order::Write(Box::new(batch))),
                    // A writer that takes no more orders has failed, and its own error says why.
                    _ => return Ok(()),
                },
                batch = encoded.try_next(), if !ended => match batch? {
                    Some(batch) => {
                        queue.leave();
                        ready.push_back(batch);
                    }
                    None => {
                        ended = true;
                        is_all_read.store(true, Ordering::Relaxed);
                        queue.all_is_read(ready.len());
                    }
                },
            }
        }
        to_writer.send(Order::Finish).await.ok();
        Ok(())
    };
    let fed = tokio::select! {
        biased;
        // At once: batches before that one may take long, and all the while there is an image that somebody could resume.
        different = luns.found_different() => Err((different, false)),
        fed = feed => fed.map_err(|error| (error, false)),
        reason = stop.as_mut() => Err((reason, true)),
    };
    // Whatever came first: what is written may be wrong, and only this error says so.
    let fed = match luns.difference() {
        Some(different) => Err((different, matches!(fed, Err((_, true))))),
        None => fed,
    };
    let (error, is_stopped) = match fed {
        Ok(()) => {
            drop(to_writer);
            return writer.await.map_err(broken)?;
        }
        Err(why) => why,
    };
    let settles = error.kind() == ErrorKind::CopyAreaFilling && lets_go;
    if settles {
        // A writer that is busy for so long leaves its last checkpoint.
        timeout(SETTLE, to_writer.send(Order::Settle)).await.ok();
    }
    drop(to_writer);
    let stopped = StoppedWriter {
        writer,
        remover: remover.filter(|_| error.kind().spoils_image()),
    };
    if settles {
        stopped.end(sleep(SETTLE)).await;
    } else if is_stopped || !lets_go {
        stopped.end(std::future::ready(())).await;
    } else {
        stopped.end(async { drop(stop.await) }).await;
    }
    Err(error)
}

pub(super) fn broken(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "a thread of the pipeline broke down").caused_by(error)
}

/// Fetches `source` from `start` on in volume order, several batches at a time, and has `then` make something of each: nothing comes out
/// here but under the law of validated reads. Whoever keeps the places of batches holds up those that follow.
///
/// The stream ends at the first error.
pub fn fetch_batches<'a, S, T, F>(
    source: &'a S,
    luns: &'a Luns,
    policy: FetchPolicy,
    start: u64,
    delta: Option<Arc<Delta>>,
    limits: BatchLimits,
    then: impl Fn(Place, Fetched) -> F,
) -> impl Stream<Item = Result<T>>
where
    S: FrozenSource,
    F: Future<Output = Result<T>>,
{
    let fetcher = Arc::new(Fetcher::new(source, luns, policy));
    let then = Arc::new(then);
    let mut turns = 0..;
    let places = Arc::new(Semaphore::new(BATCHES_IN_MEMORY));
    work(source, start, delta, limits, Arc::clone(&fetcher))
        .map_ok(move |work| {
            let (fetcher, then, places) = (Arc::clone(&fetcher), Arc::clone(&then), Arc::clone(&places));
            // Here batches come in volume order; which one is read first, nobody knows.
            let turn = turns.next().unwrap_or(u64::MAX);
            async move {
                // There are more places than batches in flight: those before this one have theirs, or get it from the writer.
                let memory = places.acquire_owned().await.ok();
                let fetched = match work {
                    Work::Same(range) => same(range),
                    Work::Fetch(batch) => fetcher.fetch(batch).await?,
                };
                then(Place { turn, memory }, fetched).await
            }
        })
        .try_buffered(BATCHES_IN_FLIGHT)
}

/// A stretch that is as in the parent image.
fn same(range: ByteRange) -> Fetched {
    Fetched {
        stretches: vec![FetchedStretch { range, bytes: None }],
        records: vec![same_record(range)],
        tally: Tally {
            bytes_same: range.len(),
            ..Tally::default()
        },
    }
}

/// Compresses and hashes a batch, its segments side by side.
async fn encode(
    fetched: Fetched,
    place: Place,
    delta: Option<Arc<Delta>>,
    encoders: Arc<Semaphore>,
) -> Result<Encoded> {
    let mut records = fetched.records.as_slice();
    let segments: Vec<_> = fetched
        .stretches
        .into_iter()
        .map(|stretch| {
            let first = records.partition_point(|r| r.range.end() <= stretch.range.start());
            records = &records[first..];
            let own: Vec<Record> = records
                .iter()
                .map_while(|r| {
                    r.range
                        .intersection(stretch.range)
                        .map(|range| Record { range, ..*r })
                })
                .collect();
            encode_segment(stretch, own, delta.clone(), Arc::clone(&encoders))
        })
        .collect();
    Ok(Encoded {
        pieces: try_join_all(segments).await?,
        tally: fetched.tally,
        place,
        spooled: None,
    })
}

/// Pure work (and, of what is as in the parent, a look at its hashes), on a thread of its own; as many as there are processors. The
/// plain bytes go when it is done.
async fn encode_segment(
    stretch: FetchedStretch,
    records: Vec<Record>,
    delta: Option<Arc<Delta>>,
    encoders: Arc<Semaphore>,
) -> Result<EncodedPiece> {
    let _encoder = encoders.acquire().await;
    tokio::task::spawn_blocking(move || {
        let leaves;
        let content = match (stretch.bytes.as_deref(), &delta) {
            (Some(bytes), _) => Content::Bytes(bytes),
            (None, Some(delta)) if records.iter().any(|record| record.kind == Kind::Same) => {
                leaves = delta.leaves(stretch.range)?;
                Content::Same(&leaves)
            }
            (None, _) => Content::Zeroes,
        };
        Ok(compress_piece(stretch.range, content, &records, DEFAULT_LEVEL))
    })
    .await
    .map_err(broken)?
}

/// The writer's thread: everything in volume order.
fn write(
    writing: Writing,
    mut orders: mpsc::Receiver<Order>,
    queue: &Queue,
    progress: &Progress,
) -> Result<Finished> {
    let Writing {
        mut encoder,
        first,
        mut output,
        mut tally,
        delta: _,
        checkpoints,
        spool,
        is_all_read: _,
    } = writing;
    output.write(&first)?;
    let mut due = checkpoints
        .filter(|_| output.is_resumable())
        .map(NextCheckpoint::after);
    loop {
        let encoded = match orders.blocking_recv() {
            Some(Order::Write(encoded)) => encoded,
            Some(Order::Finish) => break,
            Some(Order::Settle) => {
                if due.is_some() {
                    checkpoint(&mut encoder, output.as_mut(), &tally)?;
                }
                return Err(Error::new(ErrorKind::CopyAreaFilling, "the pipeline ended early"));
            }
            None => return Err(Error::new(ErrorKind::Interrupted, "the pipeline ended early")),
        };
        let mut spooled = match (&spool, encoded.spooled) {
            (Some(spool), Some(spooled)) => Some(spool.take(spooled)),
            _ => None,
        };
        let mut written = 0;
        for mut piece in encoded.pieces {
            if let Some(spooled) = &mut spooled {
                spooled.fill(&mut piece)?;
            }
            for bytes in encoder.append(piece)? {
                output.write(&bytes)?;
                written += bytes.len() as u64;
            }
        }
        drop((spooled, encoded.place));
        tally.add(&encoded.tally);
        progress.update(&tally);
        if let Some(next) = &mut due
            && next.is_reached(written)
        {
            checkpoint(&mut encoder, output.as_mut(), &tally)?;
            *next = NextCheckpoint::after(next.every);
        }
        queue.written();
    }
    let (rest, end) = encoder.finish(tally.totals())?;
    for bytes in rest {
        output.write(&bytes)?;
    }
    Ok(Finished { tally, end, output })
}

/// When the next checkpoint is due.
struct NextCheckpoint {
    every: CheckpointEvery,
    bytes: u64,
    since: Instant,
}

impl NextCheckpoint {
    fn after(every: CheckpointEvery) -> Self {
        Self {
            every,
            bytes: 0,
            since: Instant::now(),
        }
    }

    fn is_reached(&mut self, written: u64) -> bool {
        self.bytes += written;
        self.bytes >= self.every.bytes || self.since.elapsed() >= self.every.time
    }
}

/// A checkpoint says that everything before it is durable, so it is written after that.
fn checkpoint(encoder: &mut Encoder, output: &mut dyn Output, tally: &Tally) -> Result<()> {
    for bytes in encoder.flush()? {
        output.write(&bytes)?;
    }
    output.make_durable()?;
    output.write(&encoder.checkpoint(&tally.checkpoint()))
}

#[cfg(test)]
mod tests;
