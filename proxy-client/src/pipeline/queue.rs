//! Batches between those who read and encode them and the one who writes them.

use std::sync::Arc;

use tokio::sync::watch;

use super::limits::{BATCHES_IN_FLIGHT, BATCHES_READY};
use super::run::broken;
use super::spool::{Spool, Spooled};
use super::tally::Tally;
use crate::error::Result;
use crate::image::EncodedPiece;

/// A batch, ready to be written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) pieces: Vec<EncodedPiece>,
    pub(super) tally: Tally,
    /// Where its bytes are, if they wait in the spool.
    pub(super) spooled: Option<Spooled>,
}

/// Encoded batches whose turn to be written has not come. What enters is bounded: the first few wait in memory, and others only in the
/// spool; who finds no room there is in flight still, and holds up the reads.
#[derive(Clone)]
pub(super) struct Queue {
    spool: Option<Arc<Spool>>,
    /// Batches that the writer has got.
    handed: Arc<watch::Sender<u64>>,
}

impl Queue {
    pub(super) fn new(spool: Option<Arc<Spool>>) -> Self {
        Self {
            spool,
            handed: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Returns when the batch may wait without holding up anybody: in memory, where few are before it, so that the next one always
    /// passes; or in the spool, as soon as that has room. Turns are counted from 0 in volume order, whoever is ready first.
    pub(super) async fn enter(&self, turn: u64, mut batch: Encoded) -> Result<Encoded> {
        // With so many before it that are not in flight, the first of them waits for the writer: only then is the spool worth its time.
        let most = if self.spool.is_some() {
            BATCHES_IN_FLIGHT
        } else {
            BATCHES_READY
        };
        let mut handed = self.handed.subscribe();
        loop {
            if turn < *handed.borrow_and_update() + most as u64 {
                return Ok(batch);
            }
            let Some(spool) = self.spool.clone() else {
                handed.changed().await.ok();
                continue;
            };
            let mut freed = spool.freed();
            batch = tokio::task::spawn_blocking(move || {
                batch.spooled = spool.put(&mut batch.pieces);
                batch
            })
            .await
            .map_err(broken)?;
            if batch.spooled.is_some() {
                return Ok(batch);
            }
            tokio::select! {
                _ = handed.changed() => {}
                _ = freed.changed() => {}
            }
        }
    }

    /// The writer has got the next batch.
    pub(super) fn leave(&self) {
        self.handed.send_modify(|handed| *handed += 1);
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
    use futures_util::stream::{self, FuturesOrdered};
    use tokio::time::timeout;

    use super::super::spool::tests::{MIB, noise};
    use super::*;

    fn batch() -> Encoded {
        Encoded {
            pieces: noise(1),
            tally: Tally::default(),
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

    #[tokio::test]
    async fn who_finds_no_room_waits_and_the_next_one_never_does() {
        // A frame of noise is longer than its MiB: there is room for two.
        let spool = Arc::new(Spool::open(Path::new(env!("CARGO_MANIFEST_DIR")), Some(5 * MIB / 2)).unwrap());
        let queue = Queue::new(Some(Arc::clone(&spool)));
        let mut entering: FuturesOrdered<_> = (0..6).map(|turn| queue.enter(turn, batch())).collect();
        let mut waiting = let_in(&mut entering, 6).await;
        let spooled: Vec<bool> = waiting.iter().map(|batch| batch.spooled.is_some()).collect();
        assert_eq!(spooled, [false, false, false, false, true, true]);
        entering.extend((6..12).map(|turn| queue.enter(turn, batch())));
        let_in(&mut entering, 0).await;
        // The writer takes one from memory: that is the turn of one in the spool.
        waiting.remove(0);
        queue.leave();
        let_in(&mut entering, 0).await;
        // All of memory.
        for _ in 0..3 {
            waiting.remove(0);
            queue.leave();
        }
        let more = let_in(&mut entering, 2).await;
        assert!(
            more.iter().all(|batch| batch.spooled.is_none()),
            "before the eighth there are four in memory"
        );
        // However it goes on: nobody waits for ever.
        let all = stream::iter(waiting.into_iter().chain(more))
            .map(Ok)
            .chain(entering);
        let mut all = std::pin::pin!(all);
        while let Some(batch) = timeout(Duration::from_secs(60), all.next())
            .await
            .expect("it comes")
        {
            let mut batch = batch.unwrap();
            queue.leave();
            if let Some(place) = batch.spooled.take() {
                spool.take(&place, &mut batch.pieces).unwrap();
            }
            assert!(batch.pieces.iter().all(EncodedPiece::is_whole));
        }
        assert_eq!(spool.used(), 0);
    }

    #[tokio::test]
    async fn without_a_spool_few_wait() {
        let queue = Queue::new(None);
        let mut entering: FuturesOrdered<_> = (0..5).map(|turn| queue.enter(turn, batch())).collect();
        let_in(&mut entering, BATCHES_READY).await;
        queue.leave();
        let_in(&mut entering, 1).await;
    }
}
