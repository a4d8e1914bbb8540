//! A point at which a thread is held.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for anything that a test expects: far beyond what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Armed,
    Held,
    Released,
}

/// Holds the first thread that passes, until it is released or dropped. Whoever comes later goes on.
pub struct Hold(Arc<Point>);

/// The place where threads pass a [`Hold`].
pub struct Point {
    state: Mutex<State>,
    changed: Condvar,
}

impl Hold {
    /// Armed.
    #[allow(clippy::new_without_default, reason = "armed is no default")]
    pub fn new() -> Self {
        Self(Arc::new(Point {
            state: Mutex::new(State::Armed),
            changed: Condvar::new(),
        }))
    }

    /// What threads pass.
    pub fn point(&self) -> Arc<Point> {
        Arc::clone(&self.0)
    }

    /// Waits until a thread is held.
    pub fn wait(&self) {
        self.0
            .wait_while(|state| state == State::Armed, "nobody came to the point");
    }

    /// Lets the thread go on, and all that come later.
    pub fn release(&self) {
        self.0.set(State::Released);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

impl Point {
    /// Passes the point: the first to come is held here.
    pub fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if *state != State::Armed {
            return;
        }
        *state = State::Held;
        drop(state);
        self.changed.notify_all();
        self.wait_while(|state| state == State::Held, "nobody released the point");
    }

    /// Lets everybody go on.
    pub fn release(&self) {
        self.set(State::Released);
    }

    fn set(&self, new: State) {
        // A test that failed under the lock releases what it holds all the same.
        *self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        self.changed.notify_all();
    }

    fn wait_while(&self, waits: impl Fn(State) -> bool, otherwise: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        while waits(*state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                panic!("{otherwise}");
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}
