//! Holds: promises to keep a frozen image until a time. Whoever has work done with one renews it as long as the work goes on, and when
//! nobody does, it ends by itself: nothing stays frozen because somebody was lost.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that one promise is for.
const HOLD_MAX: Duration = Duration::from_secs(86_400);

/// The holds of an agent, by the name that the frozen image or set is thawed by.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<BTreeMap<String, Instant>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises to keep something so long from now on, no longer and no shorter.
    pub(super) fn set(&self, name: &str, time: Duration) {
        self.lock()
            .insert(name.to_owned(), Instant::now() + time.min(HOLD_MAX));
    }

    /// Promises to keep something at least so long from now on, if it is kept at all.
    pub(super) fn prolong(&self, name: &str, time: Duration) {
        if let Some(until) = self.lock().get_mut(name) {
            *until = (*until).max(Instant::now() + time.min(HOLD_MAX));
        }
    }

    /// There is nothing to keep any more.
    pub(super) fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// How long something is still kept; `None`: nobody promised anything, and it stays.
    pub(super) fn rest(&self, name: &str) -> Option<Duration> {
        let until = *self.lock().get(name)?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Takes out what is kept no longer.
    pub(super) fn take_expired(&self) -> Vec<String> {
        let now = Instant::now();
        let mut holds = self.lock();
        let expired: Vec<String> = holds
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(name, _)| name.clone())
            .collect();
        holds.retain(|_, until| *until > now);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_for_its_time() {
        let holds = Holds::default();
        holds.set("a", Duration::ZERO);
        holds.set("b", Duration::from_secs(60));
        holds.set("c", HOLD_MAX * 2);
        assert_eq!(holds.take_expired(), ["a"]);
        assert_eq!(holds.take_expired(), [] as [&str; 0]);
        assert!(holds.rest("a").is_none() && holds.rest("b") <= Some(Duration::from_secs(60)));
        assert!(holds.rest("c") <= Some(HOLD_MAX));
        holds.set("b", Duration::ZERO);
        holds.forget("c");
        assert_eq!(holds.take_expired(), ["b"]);
        assert!(holds.rest("c").is_none());
    }

    #[test]
    fn what_is_prolonged_gets_no_shorter_and_nothing_begins_by_it() {
        let holds = Holds::default();
        holds.set("a", Duration::from_secs(60));
        holds.prolong("a", Duration::from_secs(1));
        assert!(holds.rest("a") > Some(Duration::from_secs(50)));
        holds.prolong("a", Duration::from_secs(600));
        assert!(holds.rest("a") > Some(Duration::from_secs(500)));
        holds.prolong("b", Duration::from_secs(60));
        assert!(holds.rest("b").is_none());
    }
}
