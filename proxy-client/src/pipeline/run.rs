//! The pipeline itself: batches are fetched and encoded side by side, and written one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, Stream, TryStreamExt};
use tokio::sync::mpsc;
use volmap::range::ByteRange;

use super::fetch::{FetchPolicy, Fetched, fetch};
use super::limits::{BATCH_DATA, BATCH_EXTENTS, BATCH_RANGE, BATCHES_IN_FLIGHT, MAP_WINDOW};
use super::luns::Luns;
use super::source::FrozenSource;
use super::tally::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Content, DEFAULT_LEVEL, EncodedPiece, Encoder, End, LEAF, Record, Totals, compress_piece,
};
use crate::output::Output;
use crate::plan::batch::{Batch, BatchLimits, Batcher};
use crate::progress::Progress;

/// Batches of a backup.
const BATCHES: BatchLimits = BatchLimits {
    leaf: LEAF,
    data: BATCH_DATA,
    extents: BATCH_EXTENTS,
    range: BATCH_RANGE,
};

/// A job that has written everything, and has committed nothing yet.
pub struct Finished {
    /// What became of the bytes.
    pub tally: Tally,
    /// The END of the image.
    pub end: End,
    /// The output, to be committed.
    pub output: Box<dyn Output>,
}

/// A batch, ready to be written.
struct Encoded {
    pieces: Vec<EncodedPiece>,
    tally: Tally,
}

/// What the writer is told.
enum Order {
    Write(Encoded),
    /// That was everything. Without this order the end of the orders is not the end of the work.
    Finish,
}

/// Backs the whole of `source` up: fetches, encodes and writes. On an error nothing is committed.
///
/// # Errors
/// The first error of any stage.
pub async fn run<S: FrozenSource>(
    source: &S,
    luns: &Luns,
    policy: FetchPolicy,
    (encoder, header): (Encoder, Bytes),
    output: Box<dyn Output>,
    progress: &Progress,
) -> Result<Finished> {
    let (to_writer, orders) = mpsc::channel(1);
    let writer_progress = progress.clone();
    let writer =
        tokio::task::spawn_blocking(move || write(encoder, &header, output, orders, &writer_progress));

    let encoded = fetch_batches(source, luns, policy, BATCHES, |fetched| async {
        tokio::task::spawn_blocking(move || encode(fetched))
            .await
            .map_err(broken)
    });
    let mut encoded = std::pin::pin!(encoded);
    let fed: Result<()> = async {
        // A writer that takes no more orders has failed, and its own error says why.
        while let Some(batch) = encoded.try_next().await? {
            if to_writer.send(Order::Write(batch)).await.is_err() {
                return Ok(());
            }
        }
        to_writer.send(Order::Finish).await.ok();
        Ok(())
    }
    .await;
    drop(to_writer);
    let written = writer.await.map_err(broken)?;
    fed?;
    written
}

fn broken(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "a thread of the pipeline broke down").caused_by(error)
}

/// Fetches all of `source` in volume order, several batches at a time, and has `then` make something of each: nothing comes out
/// here but under the law of validated reads.
///
/// The stream ends at the first error.
pub fn fetch_batches<S, T, F>(
    source: &S,
    luns: &Luns,
    policy: FetchPolicy,
    limits: BatchLimits,
    then: impl Fn(Fetched) -> F,
) -> impl Stream<Item = Result<T>>
where
    S: FrozenSource,
    F: Future<Output = Result<T>>,
{
    let confirmations = Arc::new(AtomicU64::new(0));
    let then = Arc::new(then);
    batches(source, limits, Arc::clone(&confirmations))
        .map_ok(move |(batch, map_age)| {
            let (confirmations, then) = (Arc::clone(&confirmations), Arc::clone(&then));
            async move {
                // Law P0: a map is stale once anything was confirmed after it was learnt.
                let stale = confirmations.load(Ordering::SeqCst) != map_age;
                let fetched = fetch(source, luns, policy, batch, stale).await?;
                confirmations.fetch_add(fetched.tally.validations, Ordering::SeqCst);
                then(fetched).await
            }
        })
        .try_buffered(BATCHES_IN_FLIGHT)
}

/// The batches of the volume in order, each with the number of confirmations before the oldest part of its map was asked for.
fn batches<S: FrozenSource>(
    source: &S,
    limits: BatchLimits,
    confirmations: Arc<AtomicU64>,
) -> impl Stream<Item = Result<(Batch, u64)>> {
    let start = (Batcher::new(source.size(), limits), 0, confirmations);
    stream::try_unfold(
        start,
        move |(mut batcher, mut map_age, confirmations)| async move {
            loop {
                if let Some(batch) = batcher.take() {
                    return Ok(Some(((batch, map_age), (batcher, map_age, confirmations))));
                }
                let at = batcher.next_offset();
                let Some(window) =
                    ByteRange::from_bounds(at, source.size().min(at.saturating_add(MAP_WINDOW)))
                else {
                    return Ok(None);
                };
                // A batch may be made of what several replies told.
                if !batcher.holds_extents() {
                    map_age = confirmations.load(Ordering::SeqCst);
                }
                batcher.feed(source.map(window).await?);
            }
        },
    )
}

/// Compresses and hashes a batch: pure work, on a thread of its own.
fn encode(fetched: Fetched) -> Encoded {
    let mut records = fetched.records.as_slice();
    let pieces = fetched
        .stretches
        .iter()
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
            let content = stretch.bytes.as_deref().map_or(Content::Zeroes, Content::Bytes);
            compress_piece(stretch.range, content, &own, DEFAULT_LEVEL)
        })
        .collect();
    Encoded {
        pieces,
        tally: fetched.tally,
    }
}

/// The writer's thread: everything in volume order.
fn write(
    mut encoder: Encoder,
    header: &[u8],
    mut output: Box<dyn Output>,
    mut orders: mpsc::Receiver<Order>,
    progress: &Progress,
) -> Result<Finished> {
    output.write(header)?;
    let mut tally = Tally::default();
    loop {
        let encoded = match orders.blocking_recv() {
            Some(Order::Write(encoded)) => encoded,
            Some(Order::Finish) => break,
            None => return Err(Error::new(ErrorKind::Interrupted, "the pipeline ended early")),
        };
        for piece in encoded.pieces {
            for bytes in encoder.append(piece)? {
                output.write(&bytes)?;
            }
        }
        tally.add(&encoded.tally);
        progress.update(&tally);
    }
    let (rest, end) = encoder.finish(Totals {
        moved: tally.bytes_moved,
        remapped_direct: tally.bytes_remapped_direct,
        validations: tally.validations,
    })?;
    for bytes in rest {
        output.write(&bytes)?;
    }
    Ok(Finished { tally, end, output })
}

#[cfg(test)]
mod tests {
    use volmap::generation::Generation;

    use super::*;
    use crate::plan::mapped::MappedExtent;

    /// A leaf of data in each reply, and something else is confirmed after each.
    struct ShortReplies<'a>(&'a AtomicU64);

    impl FrozenSource for ShortReplies<'_> {
        fn size(&self) -> u64 {
            BATCH_DATA + LEAF
        }

        async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(vec![MappedExtent {
                range: ByteRange::new(range.start(), LEAF).unwrap(),
                content: volmap::map::Content::Data,
                generation: Generation::from_wire(1),
                place: None,
            }])
        }

        async fn generations(&self, _: ByteRange) -> Result<Vec<MappedExtent>> {
            unreachable!("batches are made of maps")
        }

        async fn read(&self, _: ByteRange) -> Result<Bytes> {
            unreachable!("batches are made of maps")
        }
    }

    #[tokio::test]
    async fn a_batch_is_as_old_as_the_first_reply_that_it_is_made_of() {
        let confirmations = Arc::new(AtomicU64::new(0));
        let source = ShortReplies(&confirmations);
        let batches: Vec<_> = batches(&source, BATCHES, Arc::clone(&confirmations))
            .try_collect()
            .await
            .unwrap();
        let ages: Vec<u64> = batches.iter().map(|(_, age)| *age).collect();
        // What is left of the first batch's replies keeps their age.
        assert_eq!(ages, [0, 0]);
    }
}
