//! What requests in flight may take of this process: bounded for each connection, and for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::limits::{BYTES_MAX, REQUESTS_MAX, SERVER_BYTES_MAX};

/// Memory that all connections of a server share.
#[derive(Debug, Default)]
pub(super) struct ServerBudget {
    taken: AtomicUsize,
    /// Connections that wait for memory.
    waiting: Mutex<Vec<Waker>>,
}

impl ServerBudget {
    /// Whether somebody waits: then whoever holds memory and does nothing with it should go.
    pub(super) fn is_wanted(&self) -> bool {
        !self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self, bytes: usize) -> bool {
        let room = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= SERVER_BYTES_MAX);
        self.taken
            .try_update(Ordering::AcqRel, Ordering::Acquire, room)
            .is_ok()
    }

    fn poll_take(&self, bytes: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.try_take(bytes) {
            return Poll::Ready(());
        }
        let mut waiting = self.lock();
        // Between the attempt and the lock somebody may have given back and found nobody to wake.
        if self.try_take(bytes) {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn give_back(&self, bytes: usize) {
        let before = self.taken.fetch_sub(bytes, Ordering::AcqRel);
        assert!(before >= bytes, "nobody gives back what he did not take");
        for waker in self.lock().drain(..) {
            waker.wake();
        }
    }
}

/// What the requests of one connection take. All of it goes back when the connection ends.
#[derive(Debug)]
pub(super) struct Budget {
    server: Arc<ServerBudget>,
    requests: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn of(server: &Arc<ServerBudget>) -> Self {
        Self {
            server: Arc::clone(server),
            requests: 0,
            bytes: 0,
        }
    }

    /// Whether somebody else waits for memory.
    pub(super) fn is_wanted(&self) -> bool {
        self.server.is_wanted()
    }

    /// Bytes that this connection has taken.
    pub(super) fn held(&self) -> usize {
        self.bytes
    }

    /// Takes one request that may need `cost` bytes, or waits: for this connection's own replies to be sent, or for memory of the
    /// server. A request that needs more than a connection may have is let in when there is no other.
    pub(super) fn poll_take(&mut self, cost: usize, cx: &mut Context<'_>) -> Poll<usize> {
        let cost = cost.clamp(1, BYTES_MAX);
        if self.requests == REQUESTS_MAX || self.bytes + cost > BYTES_MAX {
            // Nobody wakes for this: it is over when a reply of this connection is sent, and that is noticed where it happens.
            return Poll::Pending;
        }
        self.server.poll_take(cost, cx).map(|()| {
            self.requests += 1;
            self.bytes += cost;
            cost
        })
    }

    /// Gives back what of `cost` is more than `kept`; what is kept.
    pub(super) fn keep(&mut self, cost: usize, kept: usize) -> usize {
        let kept = kept.min(cost);
        self.bytes -= cost - kept;
        self.server.give_back(cost - kept);
        kept
    }

    /// A reply is sent: what its request took is free.
    pub(super) fn give_back(&mut self, cost: usize) {
        self.requests -= 1;
        self.bytes -= cost;
        self.server.give_back(cost);
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.server.give_back(self.bytes);
    }
}
