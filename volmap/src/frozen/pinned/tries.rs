//! When a lost map is made anew: one try at a time, at once where something happened, and seldom where nothing does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{REMAP_PATIENCE, REMAP_PAUSE, REMAP_PAUSE_MAX, REMAP_SHARE};

/// Whether anything happened. It may wait for a device.
pub(super) type Since = Arc<dyn Fn() -> bool + Send + Sync>;

/// What became of a try.
pub(super) enum Outcome {
    /// There is another map.
    Mapped,
    /// There is none yet; where a look was had, whether anything happened since.
    NotYet(String, Option<Since>),
    /// There will never be one.
    Never(String),
}

/// See the module.
pub(super) struct Tries {
    /// Its lock is never held while anything is asked of a device.
    state: Mutex<State>,
    ended: Condvar,
    /// Whether there will be no other try.
    over: AtomicBool,
}

struct State {
    /// When the try that is under way began.
    begun: Option<Instant>,
    not_before: Instant,
    /// When the next one is due though nothing happened.
    due: Instant,
    pause: Duration,
    since: Option<Since>,
}

impl Tries {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(State {
                begun: None,
                not_before: now,
                due: now,
                pause: REMAP_PAUSE,
                since: None,
            }),
            ended: Condvar::new(),
            over: AtomicBool::new(false),
        }
    }

    // Every field is good by itself.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a try is to begin now; it has, then, and has to [`end`](Self::end).
    pub(super) fn begin(&self) -> bool {
        let now = Instant::now();
        let state = self.state();
        if !self.may_begin(&state, now) {
            return false;
        }
        let since = state.since.clone().filter(|_| now < state.due);
        drop(state);
        if since.is_some_and(|since| !since()) {
            return false;
        }
        // Others had the same answer, and one of them may be trying by now, or have tried.
        let mut state = self.state();
        if !self.may_begin(&state, now) {
            return false;
        }
        state.begun = Some(Instant::now());
        true
    }

    fn may_begin(&self, state: &State, now: Instant) -> bool {
        !self.are_over() && state.begun.is_none() && now >= state.not_before
    }

    /// The end of a try.
    pub(super) fn end(&self, outcome: Outcome) {
        let mut state = self.state();
        let now = Instant::now();
        let took = state.begun.take().map_or(Duration::ZERO, |begun| now - begun);
        state.not_before = now + REMAP_PAUSE.max(took * REMAP_SHARE);
        match outcome {
            Outcome::Mapped => {
                state.pause = REMAP_PAUSE;
                state.since = None;
            }
            Outcome::NotYet(_, since) => {
                state.due = now + state.pause.max(took * REMAP_SHARE);
                // Whoever cannot look has nothing that would notice: then it is time that counts.
                state.since = Some(since.unwrap_or_else(|| Arc::new(|| false)));
                state.pause = (state.pause * 2).min(REMAP_PAUSE_MAX);
            }
            Outcome::Never(_) => self.over.store(true, Ordering::SeqCst),
        }
        self.ended.notify_all();
    }

    /// Waits for a try that is under way, but not long.
    pub(super) fn wait(&self) {
        let state = self.state();
        let Some(begun) = state.begun else {
            return;
        };
        let rest = REMAP_PATIENCE.saturating_sub(begun.elapsed());
        let waited = self
            .ended
            .wait_timeout_while(state, rest, |state| state.begun == Some(begun));
        drop(waited);
    }

    /// Whether there will be no other try. Waits for nobody.
    pub(super) fn are_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn not_yet(happened: &Arc<AtomicBool>) -> Outcome {
        let happened = Arc::clone(happened);
        let since: Since = Arc::new(move || happened.load(Ordering::SeqCst));
        Outcome::NotYet("busy".to_owned(), Some(since))
    }

    /// So that the next one is not too soon.
    fn pause() {
        thread::sleep(REMAP_PAUSE + Duration::from_millis(20));
    }

    #[test]
    fn one_try_at_a_time_and_none_too_soon() {
        let tries = Tries::new();
        assert!(tries.begin() && !tries.begin());
        tries.end(Outcome::Mapped);
        assert!(!tries.begin());
        pause();
        assert!(tries.begin());
    }

    #[test]
    fn what_failed_is_tried_again_when_something_happened() {
        let (tries, happened) = (Tries::new(), Arc::default());
        // The pauses double while nothing happens.
        for _ in 0..4 {
            tries.state().begun = Some(Instant::now());
            tries.end(not_yet(&happened));
        }
        pause();
        assert!(!tries.begin());
        happened.store(true, Ordering::SeqCst);
        assert!(tries.begin());
    }

    #[test]
    fn what_failed_is_tried_again_after_a_while_though_nothing_happened() {
        let (tries, happened) = (Tries::new(), Arc::default());
        assert!(tries.begin());
        tries.end(not_yet(&happened));
        pause();
        assert!(tries.begin());
        let now = Instant::now();
        for _ in 0..20 {
            tries.state().begun = Some(now);
            tries.end(not_yet(&happened));
        }
        let due = tries.state().due;
        assert!(due > now + REMAP_PAUSE_MAX / 2 && due < now + REMAP_PAUSE_MAX * 2);
    }

    #[test]
    fn where_there_will_be_none_nothing_is_tried() {
        let tries = Tries::new();
        assert!(tries.begin());
        tries.end(Outcome::Never("it is gone".to_owned()));
        pause();
        assert!(!tries.begin() && tries.are_over());
    }

    #[test]
    fn whoever_looks_at_a_device_that_hangs_holds_up_nobody_else() {
        let (tries, asked) = (Arc::new(Tries::new()), Arc::new(AtomicBool::new(false)));
        let (say, word) = mpsc::channel();
        let word = Mutex::new(word);
        assert!(tries.begin());
        let seen = Arc::clone(&asked);
        let since: Since = Arc::new(move || {
            seen.store(true, Ordering::SeqCst);
            word.lock().unwrap().recv().is_ok()
        });
        tries.end(Outcome::NotYet("busy".to_owned(), Some(since)));
        pause();
        // Due only if something happened, however slow this machine is.
        tries.state().due = Instant::now() + Duration::from_secs(600);
        let looking = Arc::clone(&tries);
        let looks = thread::spawn(move || looking.begin());
        while !asked.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let (done, finished) = mpsc::channel();
        let others = Arc::clone(&tries);
        thread::spawn(move || {
            others.wait();
            done.send(others.are_over()).unwrap();
        });
        let others = finished.recv_timeout(Duration::from_secs(10));
        say.send(()).unwrap();
        assert_eq!(others, Ok(false), "nobody else waits");
        assert!(looks.join().unwrap());
    }

    #[test]
    fn whoever_was_overtaken_while_it_looked_does_not_try_too() {
        let tries = Arc::new(Tries::new());
        assert!(tries.begin());
        let (say, word) = mpsc::channel();
        let (told, asked) = mpsc::channel();
        let word = Mutex::new(word);
        let since: Since = Arc::new(move || {
            told.send(()).unwrap();
            word.lock().unwrap().recv().is_ok()
        });
        tries.end(Outcome::NotYet("busy".to_owned(), Some(since)));
        pause();
        tries.state().due = Instant::now() + Duration::from_secs(600);
        let looking = Arc::clone(&tries);
        let looks = thread::spawn(move || looking.begin());
        asked.recv().unwrap();
        tries.state().begun = Some(Instant::now());
        say.send(()).unwrap();
        assert!(!looks.join().unwrap());
    }

    #[test]
    fn a_try_that_hangs_is_not_waited_for_long() {
        let tries = Tries::new();
        assert!(tries.begin());
        let begun = Instant::now();
        tries.wait();
        tries.wait();
        let waited = begun.elapsed();
        assert!(waited >= REMAP_PATIENCE - Duration::from_millis(20), "{waited:?}");
        assert!(waited < REMAP_PATIENCE * 2, "{waited:?}");
        tries.end(Outcome::Mapped);
        tries.wait();
    }
}
