//! How fast a job may read; changed while it runs.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::limits::{LONGEST_PAUSE, LONGEST_THROTTLE_WAIT, THROTTLE_BURST};

/// What a job may take of disks and host; nothing is limited without a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ThrottleLimits {
    /// Bytes a second, from LUNs and through the host together.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Reads in flight, from LUNs and through the host together.
    pub reads_in_flight: Option<NonZeroUsize>,
    /// While the host takes longer than this for an answer about its map, reads come one by one, with pauses.
    pub host_latency: Option<Duration>,
}

/// The handle: clones share it. A job asks before every read; whoever drives the job sets the limits, at any time.
#[derive(Clone, Debug, Default)]
pub struct Throttle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something changed that somebody may wait for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    limits: ThrottleLimits,
    in_flight: usize,
    /// When all that was let through so far has been paid for, at the rate of its time.
    paid: Option<Instant>,
    /// How long the host took for its latest answer.
    latency: Duration,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a Throttle);

impl Throttle {
    /// With these limits.
    pub fn new(limits: ThrottleLimits) -> Self {
        let throttle = Self::default();
        throttle.set(limits);
        throttle
    }

    /// Changes the limits, also for reads that wait at the moment.
    pub fn set(&self, limits: ThrottleLimits) {
        {
            let mut state = self.state();
            state.limits = limits;
            // A debt at another rate is no debt.
            state.paid = None;
        }
        self.0.changed.notify_waiters();
    }

    /// The limits.
    pub fn limits(&self) -> ThrottleLimits {
        self.state().limits
    }

    /// The host took that long for an answer.
    pub(super) fn note_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Waits until a read of `len` bytes may begin.
    pub(super) async fn begin(&self, len: u64) -> UnderWay<'_> {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // What changes from here on is heard, also while nobody waits yet.
            changed.as_mut().enable();
            // Not in the match: its lock would be held for as long as is waited.
            let admission = self.state().admit(len);
            match admission {
                Admission::Now => return UnderWay(self),
                Admission::AfterAnother => changed.await,
                Admission::In(wait) => {
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = changed => {}
                    }
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
        self.0.0.changed.notify_waiters();
    }
}

enum Admission {
    Now,
    AfterAnother,
    In(Duration),
}

impl State {
    fn admit(&mut self, len: u64) -> Admission {
        // No clock is looked at where nothing is limited.
        if self.limits == ThrottleLimits::default() {
            self.in_flight += 1;
            return Admission::Now;
        }
        let slow = self.limits.host_latency.is_some_and(|limit| self.latency > limit);
        let most = match self.limits.reads_in_flight {
            _ if slow => 1,
            Some(most) => most.get(),
            None => usize::MAX,
        };
        if self.in_flight >= most {
            return Admission::AfterAnother;
        }
        let now = Instant::now();
        let paid = self
            .paid
            .unwrap_or(now)
            .max(now.checked_sub(THROTTLE_BURST).unwrap_or(now));
        if paid > now {
            return Admission::In((paid - now).min(LONGEST_THROTTLE_WAIT));
        }
        let mut cost = Duration::ZERO;
        if let Some(rate) = self.limits.bytes_per_second {
            cost += Duration::from_nanos(
                u64::try_from(u128::from(len) * 1_000_000_000 / u128::from(rate.get())).unwrap_or(u64::MAX),
            );
        }
        let from = if slow {
            cost += self.latency.min(LONGEST_PAUSE);
            now
        } else {
            paid
        };
        self.paid = Some(from.checked_add(cost).unwrap_or(from));
        self.in_flight += 1;
        Admission::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn rate(bytes: u64) -> ThrottleLimits {
        ThrottleLimits {
            bytes_per_second: NonZeroU64::new(bytes),
            ..ThrottleLimits::default()
        }
    }

    async fn reads(throttle: &Throttle, count: u64) -> Duration {
        let begun = Instant::now();
        for _ in 0..count {
            drop(throttle.begin(MIB).await);
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_to() {
        let throttle = Throttle::new(rate(10 * MIB));
        let taken = reads(&throttle, 100).await;
        assert!((9.5..10.5).contains(&taken.as_secs_f64()), "{taken:?}");
        assert_eq!(reads(&Throttle::default(), 1000).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_is_heard_by_who_waits() {
        let throttle = Throttle::new(rate(1));
        drop(throttle.begin(MIB).await);
        let begun = Instant::now();
        let (_, ()) = tokio::join!(throttle.begin(MIB), async {
            sleep(Duration::from_millis(300)).await;
            throttle.set(rate(1 << 30));
        });
        assert!(
            begun.elapsed() < Duration::from_millis(400),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn reads_in_flight_are_bounded_and_the_bound_can_change() {
        let throttle = Throttle::new(ThrottleLimits {
            reads_in_flight: NonZeroUsize::new(2),
            ..ThrottleLimits::default()
        });
        let _first = throttle.begin(1).await;
        let second = throttle.begin(1).await;
        let third = throttle.begin(1);
        let mut third = std::pin::pin!(third);
        let waits = tokio::time::timeout(Duration::from_secs(1), &mut third).await;
        assert!(waits.is_err());
        drop(second);
        let _third = third.await;
        let waits = tokio::time::timeout(Duration::from_secs(1), throttle.begin(1)).await;
        assert!(waits.is_err());
        throttle.set(ThrottleLimits::default());
        let _fourth = throttle.begin(1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_slow_is_given_pauses() {
        let throttle = Throttle::new(ThrottleLimits {
            host_latency: Some(Duration::from_millis(10)),
            ..ThrottleLimits::default()
        });
        assert_eq!(reads(&throttle, 100).await, Duration::ZERO);
        throttle.note_latency(Duration::from_millis(50));
        let taken = reads(&throttle, 100).await;
        assert!(taken >= Duration::from_secs(4), "{taken:?}");
        throttle.note_latency(Duration::from_millis(1));
        assert!(reads(&throttle, 100).await < Duration::from_millis(100));
        // The connection was taken up again meanwhile, say.
        throttle.note_latency(Duration::from_secs(50));
        let taken = reads(&throttle, 10).await.as_secs_f64();
        assert!((8.5..10.5).contains(&taken), "{taken}");
    }
}
