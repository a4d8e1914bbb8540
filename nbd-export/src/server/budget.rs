//! What requests in flight may take of this process: bounded for each connection, and for all of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::limits::{BYTES_MAX, REQUESTS_MAX, SERVER_BYTES_MAX};

/// Memory that all connections of a server share. Who waits for it gets it in the order of asking, so that many small requests do not
/// keep a large one waiting for ever.
#[derive(Debug, Default)]
pub(super) struct ServerBudget {
    taken: AtomicUsize,
    /// Length of the queue, to be looked at without its lock.
    queued: AtomicUsize,
    queue: Mutex<VecDeque<(ConnectionId, Waker)>>,
    connections: AtomicU64,
}

/// Tells connections apart.
type ConnectionId = u64;

impl ServerBudget {
    /// Whether somebody waits: then whoever holds memory and does nothing with it should go.
    pub(super) fn is_wanted(&self) -> bool {
        self.queued.load(Ordering::SeqCst) > 0
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(ConnectionId, Waker)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self, bytes: usize) -> bool {
        let room = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= SERVER_BYTES_MAX);
        self.taken
            .try_update(Ordering::SeqCst, Ordering::SeqCst, room)
            .is_ok()
    }

    fn poll_take(&self, id: ConnectionId, bytes: usize, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_wanted() && self.try_take(bytes) {
            return Poll::Ready(());
        }
        let mut queue = self.queue();
        match queue.iter().position(|(waiting, _)| *waiting == id) {
            Some(place) => queue[place].1.clone_from(cx.waker()),
            None => queue.push_back((id, cx.waker().clone())),
        }
        self.queued.store(queue.len(), Ordering::SeqCst);
        // Asked again now that it is in the queue: somebody may have given back before, and found nobody to wake.
        let is_first = queue.front().is_some_and(|(first, _)| *first == id);
        if is_first && self.try_take(bytes) {
            self.leave(&mut queue, id);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Leaves the queue. Whoever is first now may find that there is enough.
    fn leave(&self, queue: &mut VecDeque<(ConnectionId, Waker)>, id: ConnectionId) {
        queue.retain(|(waiting, _)| *waiting != id);
        self.queued.store(queue.len(), Ordering::SeqCst);
        if let Some((_, first)) = queue.front() {
            first.wake_by_ref();
        }
    }

    fn give_back(&self, bytes: usize) {
        let before = self.taken.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "nobody gives back what he did not take");
        if self.is_wanted()
            && let Some((_, first)) = self.queue().front()
        {
            first.wake_by_ref();
        }
    }
}

/// What the requests of one connection take. All of it goes back when the connection ends.
#[derive(Debug)]
pub(super) struct Budget {
    server: Arc<ServerBudget>,
    id: ConnectionId,
    requests: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn of(server: &Arc<ServerBudget>) -> Self {
        Self {
            server: Arc::clone(server),
            id: server.connections.fetch_add(1, Ordering::Relaxed),
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
        self.server.poll_take(self.id, cost, cx).map(|()| {
            self.requests += 1;
            self.bytes += cost;
            cost
        })
    }

    /// A request whose cost was guessed turned out to take so much. Small overdrafts are let through: the memory is taken already.
    pub(super) fn settle(&mut self, guessed: usize, taken: usize) {
        self.bytes = self.bytes - guessed + taken;
        if taken > guessed {
            self.server.taken.fetch_add(taken - guessed, Ordering::SeqCst);
        } else {
            self.server.give_back(guessed - taken);
        }
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
        if self.server.is_wanted() {
            self.server.leave(&mut self.server.queue(), self.id);
        }
        self.server.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_to_who_asked_first_and_none_of_it_is_lost() {
        let server = Arc::new(ServerBudget::default());
        let cx = &mut Context::from_waker(Waker::noop());
        let mut holders: Vec<Budget> = (0..SERVER_BYTES_MAX / BYTES_MAX)
            .map(|_| Budget::of(&server))
            .collect();
        for holder in &mut holders {
            assert!(holder.poll_take(BYTES_MAX, cx).is_ready());
        }
        let (mut large, mut small) = (Budget::of(&server), Budget::of(&server));
        assert!(large.poll_take(BYTES_MAX, cx).is_pending());
        assert!(small.poll_take(1, cx).is_pending(), "not before the first");
        assert!(large.is_wanted());
        holders.pop();
        assert!(small.poll_take(1, cx).is_pending(), "not before the first");
        assert!(large.poll_take(BYTES_MAX, cx).is_ready());
        assert!(small.poll_take(1, cx).is_ready());
        large.settle(BYTES_MAX, 10);
        large.give_back(10);
        // One that waits and goes away holds nobody up.
        let mut gone = Budget::of(&server);
        for _ in 0..SERVER_BYTES_MAX / BYTES_MAX {
            let _ = gone.poll_take(BYTES_MAX, cx);
        }
        drop((gone, small, large, holders));
        assert_eq!(server.taken.load(Ordering::SeqCst), 0);
        assert!(!server.is_wanted());
    }
}
