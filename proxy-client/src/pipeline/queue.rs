//! The places of batches in memory, and those that wait between who reads and encodes them and who writes them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::run::broken;
use super::spool::{Spool, Spooled};
use super::tally::Tally;
use crate::error::Result;
use crate::image::EncodedPiece;

/// The place of a batch.
#[derive(Debug)]
pub struct Place {
    /// Its turn to be written, counted from 0 in volume order, whichever is read first.
    pub(super) turn: u64,
    /// In memory, for as long as this is kept.
    pub(super) memory: Option<OwnedSemaphorePermit>,
}

/// A batch, ready to be written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) pieces: Vec<EncodedPiece>,
    pub(super) tally: Tally,
    pub(super) place: Place,
    /// Where its bytes are, if they wait in the spool.
    pub(super) spooled: Option<Spooled>,
}

/// What left the queue for the writer, and what that has done of it.
#[derive(Clone, Copy, Default, Debug)]
struct Writer {
    left: u64,
    written: u64,
}

impl Writer {
    /// It writes one, and another waits for it: its output is what holds up the job.
    fn is_behind(self) -> bool {
        self.left > self.written + 1
    }
}

/// Encoded batches whose turn to be written has not come. Where the writer is behind and there is a spool, they give their place in memory
/// up for one there; who finds no room keeps it until its turn, and so holds up the reads in the end.
#[derive(Clone)]
pub(super) struct Queue {
    spool: Option<Arc<Spool>>,
    writer: Arc<watch::Sender<Writer>>,
}

impl Queue {
    pub(super) fn new(spool: Option<Arc<Spool>>) -> Self {
        Self {
            spool,
            writer: Arc::new(watch::Sender::new(Writer::default())),
        }
    }

    /// Returns when it is the batch's turn, or it has a place in the spool, which is tried whenever the writer is behind: only then is the
    /// spool worth its time.
    pub(super) async fn enter(&self, mut batch: Encoded) -> Result<Encoded> {
        let Some(spool) = &self.spool else {
            return Ok(batch);
        };
        let mut writer = self.writer.subscribe();
        loop {
            let mut freed = spool.freed();
            if writer.borrow_and_update().is_behind() {
                let spool = Arc::clone(spool);
                batch = tokio::task::spawn_blocking(move || {
                    batch.spooled = spool.put(&mut batch.pieces);
                    batch
                })
                .await
                .map_err(broken)?;
                if batch.spooled.is_some() {
                    batch.place.memory = None;
                    return Ok(batch);
                }
            }
            if batch.place.turn <= writer.borrow().left {
                return Ok(batch);
            }
            tokio::select! {
                _ = writer.changed() => {}
                _ = freed.changed() => {}
            }
        }
    }

    /// The next batch waits for the writer alone.
    pub(super) fn leave(&self) {
        self.writer.send_modify(|writer| writer.left += 1);
    }

    /// The writer has done with a batch.
    pub(super) fn written(&self) {
        self.writer.send_modify(|writer| writer.written += 1);
    }

    /// Everything is read, and so many batches wait to be written.
    pub(super) fn all_is_read(&self, batches: usize) {
        if let Some(spool) = &self.spool {
            let spooled = spool.used();
            tracing::info!(
                batches,
                spooled,
                "everything is read: the frozen image is not needed any more"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use futures_util::StreamExt;
    use futures_util::stream::FuturesOrdered;
    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::super::spool::tests::{MIB, noise, take};
    use super::*;

    fn batch(turn: u64) -> Encoded {
        Encoded {
            pieces: noise(1),
            tally: Tally::default(),
            place: Place { turn, memory: None },
            spooled: None,
        }
    }

    /// So many come in without a writer, and then nobody for a while.
    async fn let_in<F: Future<Output = Result<Encoded>>>(
        entering: &mut FuturesOrdered<F>,
        expected: usize,
    ) -> Vec<Encoded> {
        let mut entered = Vec::new();
        while entered.len() < expected {
            let batch = timeout(Duration::from_secs(60), entering.next())
                .await
                .expect("it comes");
            entered.push(batch.unwrap().unwrap());
        }
        let more = timeout(Duration::from_millis(200), entering.next()).await;
        assert!(!matches!(more, Ok(Some(_))), "more than {expected} come");
        entered
    }

    fn spooled(batches: &[Encoded]) -> Vec<bool> {
        batches.iter().map(|batch| batch.spooled.is_some()).collect()
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_and_the_next_one_never_does() {
        // A frame of noise is longer than its MiB: there is room for two.
        let spool = Arc::new(Spool::open(Path::new(env!("CARGO_MANIFEST_DIR")), Some(5 * MIB / 2)).unwrap());
        let queue = Queue::new(Some(Arc::clone(&spool)));
        // The writer has one, and another waits for it.
        queue.leave();
        queue.leave();
        let mut entering: FuturesOrdered<_> = (2..4).map(|turn| queue.enter(batch(turn))).collect();
        let mut waiting = let_in(&mut entering, 2).await;
        assert_eq!(spooled(&waiting), [true, true]);
        entering.push_back(queue.enter(batch(4)));
        let_in(&mut entering, 0).await;
        // It is the turn of those in the spool, and then of the one that found no room.
        queue.leave();
        queue.leave();
        assert_eq!(spooled(&let_in(&mut entering, 1).await), [false]);
        entering.push_back(queue.enter(batch(5)));
        let_in(&mut entering, 0).await;
        let mut first = waiting.remove(0);
        let place = first.spooled.take().expect("it is in the spool");
        take(&spool, place, &mut first.pieces).unwrap();
        assert!(first.pieces.iter().all(EncodedPiece::is_whole));
        assert_eq!(spooled(&let_in(&mut entering, 1).await), [true]);
    }

    #[tokio::test]
    async fn only_a_writer_that_is_behind_has_others_go_to_the_spool() {
        let spool = Arc::new(Spool::open(Path::new(env!("CARGO_MANIFEST_DIR")), None).unwrap());
        let queue = Queue::new(Some(spool));
        let places = Arc::new(Semaphore::new(2));
        let with_place = |turn| {
            let memory = Arc::clone(&places).try_acquire_owned().unwrap();
            let mut batch = batch(turn);
            batch.place.memory = Some(memory);
            batch
        };
        // The first is written; the second is being read for long, and the third came before it.
        queue.leave();
        let mut entering: FuturesOrdered<_> = [queue.enter(with_place(2))].into_iter().collect();
        let_in(&mut entering, 0).await;
        assert_eq!(places.available_permits(), 1);
        // The second waits for the first to be written: now the third would hold up the reads.
        queue.leave();
        assert_eq!(spooled(&let_in(&mut entering, 1).await), [true]);
        assert_eq!(places.available_permits(), 2);
        queue.written();
        let next = queue.enter(with_place(2)).await.unwrap();
        assert_eq!(spooled(&[next]), [false]);
    }

    #[tokio::test]
    async fn without_a_spool_nobody_waits_here() {
        let queue = Queue::new(None);
        queue.leave();
        queue.leave();
        let mut entering: FuturesOrdered<_> = (2..7).map(|turn| queue.enter(batch(turn))).collect();
        assert_eq!(spooled(&let_in(&mut entering, 5).await), [false; 5]);
    }
}
