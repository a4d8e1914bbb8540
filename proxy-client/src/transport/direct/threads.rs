//! Reads that wait for a disk on threads.
//!
//! Invariant: reads begin in the order in which they came, as soon as there are shares for the first of them; a thread that has ended one
//! goes on with the next at once. If it had to be handed over to another thread, the disk would have nothing to do meanwhile.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

use super::limits::{SHARES, shares};
use super::memory::Memory;
use super::reader::ReadMeanwhile;

/// What a read brings: the memory, and how much of it is filled.
type Filled = io::Result<(Memory, usize)>;

/// A read that nobody has begun.
struct Waiting {
    read: Box<dyn FnOnce() -> Filled + Send>,
    shares: u32,
    begun: Arc<OnceLock<Instant>>,
    done: oneshot::Sender<Filled>,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    /// Shares that no read has at the moment.
    left: u32,
    /// No read begins any more.
    closed: bool,
    /// When a read last began or ended.
    went_on: Instant,
}

impl Queue {
    /// The next read, if it may begin now.
    fn begin(&mut self) -> Option<Waiting> {
        // Nobody waits any more for what was given up meanwhile.
        while self.waiting.front().is_some_and(|first| first.done.is_closed()) {
            self.waiting.pop_front();
        }
        let first = self.waiting.pop_front_if(|first| first.shares <= self.left)?;
        self.left -= first.shares;
        self.went_on = Instant::now();
        Some(first)
    }
}

/// The threads of one path to a LUN.
#[derive(Clone)]
pub struct ReadThreads {
    queue: Arc<Mutex<Queue>>,
    deadline: Option<Duration>,
}

impl Default for ReadThreads {
    fn default() -> Self {
        let queue = Queue {
            waiting: VecDeque::new(),
            left: SHARES,
            closed: false,
            went_on: Instant::now(),
        };
        Self {
            queue: Arc::new(Mutex::new(queue)),
            deadline: None,
        }
    }
}

impl ReadThreads {
    /// The same threads, for reads that may take so long once they have begun.
    pub(super) fn within(&self, deadline: Option<Duration>) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            deadline,
        }
    }

    /// Lets no read begin from now on. Those that wait fail.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        // Whoever waits for one hears that it was dropped.
        queue.waiting.clear();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a read of `len` bytes on a thread, when its turn has come.
    ///
    /// # Errors
    /// Those of the read; that it, or all that were before it, did not end in time ([`io::ErrorKind::TimedOut`], without a code of the
    /// system); or that it was not even tried ([`io::ErrorKind::NotConnected`], without a code of the system).
    pub(super) fn read(&self, len: u64, read: impl FnOnce() -> Filled + Send + 'static) -> ReadMeanwhile {
        let (done, mut answer) = oneshot::channel();
        let begun = Arc::new(OnceLock::new());
        let waiting = Waiting {
            read: Box::new(read),
            shares: shares(len),
            begun: Arc::clone(&begun),
            done,
        };
        let threads = self.clone();
        Box::pin(async move {
            threads.submit(waiting);
            let Some(deadline) = threads.deadline else {
                return answer.await.unwrap_or_else(|_| Err(not_tried()));
            };
            loop {
                let answered = match begun.get() {
                    Some(begun) => timeout_at(*begun + deadline, &mut answer).await,
                    None => timeout(deadline, &mut answer).await,
                };
                match answered {
                    Ok(answered) => return answered.unwrap_or_else(|_| Err(not_tried())),
                    // Without a turn it waits for those before it, unless they hang: nobody may wait for them any more to say so.
                    Err(_) if threads.since(begun.get()).elapsed() >= deadline => {
                        let message = format!("a read did not end within {} s", deadline.as_secs_f64());
                        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                    }
                    Err(_) => {}
                }
            }
        })
    }

    /// Since when a read is waited for that began then, or has not begun.
    fn since(&self, begun: Option<&Instant>) -> Instant {
        begun.copied().unwrap_or_else(|| self.queue().went_on)
    }

    fn submit(&self, waiting: Waiting) {
        let mut queue = self.queue();
        if queue.closed {
            return;
        }
        queue.waiting.push_back(waiting);
        self.begin_what_may(queue);
    }

    fn begin_what_may(&self, mut queue: MutexGuard<'_, Queue>) {
        let all: Vec<Waiting> = std::iter::from_fn(|| queue.begin()).collect();
        drop(queue);
        for first in all {
            let threads = self.clone();
            spawn_blocking(move || threads.work(first));
        }
    }

    /// Does one read after the other until none may begin.
    fn work(&self, first: Waiting) {
        let mut next = Some(first);
        while let Some(Waiting {
            read,
            shares,
            begun,
            done,
        }) = next
        {
            begun.get_or_init(Instant::now);
            let result = catch_unwind(AssertUnwindSafe(read));
            // Whoever does not wait any more has no use for it.
            let _ = done.send(result.unwrap_or_else(|_| Err(io::Error::other("a read panicked"))));
            let mut queue = self.queue();
            queue.left += shares;
            queue.went_on = Instant::now();
            next = queue.begin();
            // A long read makes room for several short ones.
            self.begin_what_may(queue);
        }
    }
}

fn not_tried() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "nothing is read by this path any more",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::super::memory::MemoryPool;
    use super::*;

    const LONG: u64 = 1 << 20;
    const SHORT: u64 = 4096;

    fn filled() -> Filled {
        Ok((MemoryPool::default().take(1), 1))
    }

    /// A read that tells when it begins and waits until it may end.
    fn held(threads: &ReadThreads, len: u64, begun: &mpsc::Sender<u64>) -> (ReadMeanwhile, mpsc::Sender<()>) {
        let (end, ended) = mpsc::channel();
        let begun = begun.clone();
        let read = threads.read(len, move || {
            begun.send(len).unwrap();
            let _ = ended.recv();
            filled()
        });
        (read, end)
    }

    #[tokio::test]
    async fn a_long_read_that_ends_makes_room_for_short_ones_and_they_for_a_long_one() {
        let threads = ReadThreads::default();
        let (begun, begins) = mpsc::channel();
        let lens = [LONG; 4].into_iter().chain([SHORT; 6]).chain([LONG]);
        let (reads, mut ends): (Vec<_>, Vec<_>) = lens.map(|len| held(&threads, len, &begun)).unzip();
        let reads = tokio::spawn(join_all(reads));
        let next = |count: usize| {
            let next = (0..count).map(|_| begins.recv_timeout(Duration::from_secs(60)).unwrap());
            let next: Vec<u64> = next.collect();
            assert!(begins.recv_timeout(Duration::from_millis(50)).is_err());
            next
        };
        tokio::task::yield_now().await;
        assert_eq!(next(4), [LONG; 4]);
        drop(ends.remove(0));
        assert_eq!(next(4), [SHORT; 4]);
        // Two more short ones get in; the long one waits for four shares.
        drop(ends.remove(0));
        assert_eq!(next(2), [SHORT; 2]);
        for end in ends.drain(2..4) {
            drop(end);
        }
        assert_eq!(next(1), [LONG]);
        drop(ends);
        assert!(reads.await.unwrap().iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_deadline_is_counted_from_where_a_read_begins() {
        let deadline = Duration::from_secs(1);
        let threads = ReadThreads::default().within(Some(deadline));
        let read = || {
            threads.read(LONG, move || {
                std::thread::sleep(deadline * 6 / 10);
                filled()
            })
        };
        // The last of them end after twice the deadline.
        let reads = join_all((0..16).map(|_| read())).await;
        assert!(reads.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn what_waits_behind_hung_reads_fails_when_the_path_is_closed() {
        let threads = ReadThreads::default().within(Some(Duration::from_millis(100)));
        let (begun, _begins) = mpsc::channel();
        let (mut hung, ends): (Vec<_>, Vec<_>) = (0..4).map(|_| held(&threads, LONG, &begun)).unzip();
        let mut waits = held(&threads, LONG, &begun).0;
        for read in hung.iter_mut().chain([&mut waits]) {
            assert!(read.now_or_never().is_none());
        }
        for read in join_all(hung).await {
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        threads.close();
        assert_eq!(waits.await.unwrap_err().kind(), io::ErrorKind::NotConnected);
        let late = threads.read(1, filled).await;
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::NotConnected);
        drop(ends);
    }

    #[tokio::test]
    async fn what_waits_behind_hung_reads_that_nobody_waits_for_ends_in_time() {
        let threads = ReadThreads::default().within(Some(Duration::from_millis(100)));
        let (begun, begins) = mpsc::channel();
        let ends: Vec<_> = (0..4)
            .map(|_| {
                let (mut read, end) = held(&threads, LONG, &begun);
                assert!((&mut read).now_or_never().is_none());
                end
            })
            .collect();
        assert_eq!(begins.iter().take(4).collect::<Vec<_>>(), [LONG; 4]);
        let waits = timeout(Duration::from_secs(60), threads.read(LONG, filled)).await;
        assert_eq!(waits.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(ends);
    }

    #[tokio::test]
    async fn a_read_that_panics_gives_its_shares_back() {
        let threads = ReadThreads::default();
        let reads = (0..20).map(|_| threads.read(LONG, || panic!("of the test")));
        assert!(join_all(reads).await.iter().all(Result::is_err));
        assert!(threads.read(LONG, filled).await.is_ok());
    }

    #[tokio::test]
    async fn nobody_does_a_read_that_is_not_waited_for() {
        let threads = ReadThreads::default();
        let (begun, begins) = mpsc::channel();
        let (first, ends): (Vec<_>, Vec<_>) = (0..4).map(|_| held(&threads, LONG, &begun)).unzip();
        let first = tokio::spawn(join_all(first));
        tokio::task::yield_now().await;
        let mut given_up = held(&threads, SHORT, &begun).0;
        assert!((&mut given_up).now_or_never().is_none());
        drop(given_up);
        drop(ends);
        assert!(first.await.unwrap().iter().all(Result::is_ok));
        assert!(threads.read(SHORT, filled).await.is_ok());
        drop(begun);
        assert_eq!(begins.iter().collect::<Vec<_>>(), [LONG; 4]);
    }
}
