//! Who is let in: a crowd of half-open handshakes, or one client with many connections, must not lock the others out.
//!
//! A connection that is still in its handshake costs little, and whoever floods us has no reason to end one. So a new connection is
//! always let in, and where there are too many handshakes one of the crowd goes: the oldest of the peer that has most of them. A
//! session costs more and is the client's for as long as it likes, so seats are limited, and no peer may have all of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::limits::{HANDSHAKES_MAX, Limits};

/// Who is at the other end, as far as shares go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Peer {
    /// A process of this machine.
    Process(i32),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The network of an IPv6 address: its owner has all of the other 64 bits.
    V6(u64),
    /// A process that the kernel does not name.
    Unnamed,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// The door of a server.
#[derive(Debug)]
pub(super) struct Admission {
    seats: usize,
    /// Seats that one peer may have.
    share: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Tickets drawn so far; the oldest handshake has the lowest.
    drawn: u64,
    handshakes: BTreeMap<u64, Handshake>,
    taken: BTreeMap<Peer, usize>,
}

#[derive(Debug)]
struct Handshake {
    peer: Peer,
    /// Dropped where the handshake has to make room.
    _stay: oneshot::Sender<Infallible>,
}

/// A connection that was let in, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Arc<Admission>,
    number: u64,
    peer: Peer,
    seated: AtomicBool,
}

/// Ready when a handshake has to make room for newer ones.
pub(super) type Evicted = oneshot::Receiver<Infallible>;

impl Admission {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let seats = limits.connections;
        Arc::new(Self {
            seats,
            // A quarter stays for others.
            share: seats - seats / 4,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, at the cost of another handshake where there are too many.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer) -> (Ticket, Evicted) {
        let (stay, evicted) = oneshot::channel();
        let mut state = self.state();
        if state.handshakes.len() >= HANDSHAKES_MAX {
            state.evict();
        }
        state.drawn += 1;
        let number = state.drawn;
        state.handshakes.insert(number, Handshake { peer, _stay: stay });
        drop(state);
        let ticket = Ticket {
            admission: Arc::clone(self),
            number,
            peer,
            seated: AtomicBool::new(false),
        };
        (ticket, evicted)
    }

    /// Ends a handshake, for its descriptor.
    pub(super) fn make_room(&self) {
        self.state().evict();
    }
}

impl State {
    fn evict(&mut self) {
        let mut crowds: BTreeMap<Peer, (usize, u64)> = BTreeMap::new();
        for (number, handshake) in &self.handshakes {
            crowds.entry(handshake.peer).or_insert((0, *number)).0 += 1;
        }
        let largest = crowds.values().max_by_key(|(count, _)| *count);
        if let Some((_, oldest)) = largest {
            self.handshakes.remove(oldest);
        }
    }
}

impl Ticket {
    /// Takes a seat for a session, if there is one. Asked again it says the same.
    pub(super) fn take_seat(&self) -> bool {
        if self.seated.load(Ordering::Relaxed) {
            return true;
        }
        let mut state = self.admission.state();
        let all: usize = state.taken.values().sum();
        let taken = state.taken.entry(self.peer).or_default();
        if all >= self.admission.seats || *taken >= self.admission.share {
            return false;
        }
        *taken += 1;
        self.seated.store(true, Ordering::Relaxed);
        true
    }

    /// The handshake is over: nobody's crowd any more.
    pub(super) fn leave_handshake(&self) {
        self.admission.state().handshakes.remove(&self.number);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        state.handshakes.remove(&self.number);
        let none = match state.taken.get_mut(&self.peer) {
            Some(taken) => {
                *taken -= usize::from(*self.seated.get_mut());
                *taken == 0
            }
            None => false,
        };
        if none {
            state.taken.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize) -> Arc<Admission> {
        Admission::new(&Limits {
            connections,
            ..Limits::default()
        })
    }

    fn is_evicted(evicted: &mut Evicted) -> bool {
        evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn a_crowd_makes_room_by_its_own_oldest() {
        let admission = admission(8);
        let mut good: Vec<_> = (0..2).map(|_| admission.enter(Peer::Process(1))).collect();
        let mut crowd: Vec<_> = (0..HANDSHAKES_MAX - 2)
            .map(|_| admission.enter(Peer::Process(2)))
            .collect();
        assert!(!crowd.iter_mut().any(|(_, evicted)| is_evicted(evicted)));
        let (_one_more, mut newest) = admission.enter(Peer::Process(2));
        assert!(is_evicted(&mut crowd[0].1) && !is_evicted(&mut crowd[1].1));
        let (_another, _) = admission.enter(Peer::Process(3));
        assert!(is_evicted(&mut crowd[1].1) && !is_evicted(&mut newest));
        assert!(!good.iter_mut().any(|(_, evicted)| is_evicted(evicted)));
        assert_eq!(admission.state().handshakes.len(), HANDSHAKES_MAX);
        drop(crowd);
        assert_eq!(admission.state().handshakes.len(), 4);
    }

    #[test]
    fn a_session_is_no_part_of_the_crowd() {
        let admission = admission(8);
        let (session, mut evicted) = admission.enter(Peer::Process(1));
        assert!(session.take_seat());
        session.leave_handshake();
        // What the sender's end says now is heard by nobody.
        assert!(is_evicted(&mut evicted));
        let crowd: Vec<_> = (0..2 * HANDSHAKES_MAX)
            .map(|_| admission.enter(Peer::Process(1)))
            .collect();
        assert_eq!(admission.state().taken[&Peer::Process(1)], 1);
        drop((crowd, session));
        assert!(admission.state().taken.is_empty() && admission.state().handshakes.is_empty());
    }

    #[test]
    fn no_peer_takes_all_seats() {
        let admission = admission(8);
        let enter = |peer| admission.enter(Peer::Process(peer)).0;
        let seated = |tickets: &[Ticket]| tickets.iter().filter(|ticket| ticket.take_seat()).count();
        let greedy: Vec<_> = (0..8).map(|_| enter(1)).collect();
        assert_eq!(seated(&greedy), 6);
        let others: Vec<_> = (2..8).map(enter).collect();
        assert_eq!(seated(&others), 2);
        assert_eq!(seated(&greedy), 6, "asked again it says the same");
        drop(greedy);
        assert_eq!(seated(&others), 6);
        let lone = Admission::new(&Limits {
            connections: 1,
            ..Limits::default()
        });
        assert!(lone.enter(Peer::Unnamed).0.take_seat());
    }

    #[test]
    fn mapped_addresses_and_neighbours_are_one_peer() {
        let peer = |address: &str| Peer::from(address.parse::<IpAddr>().unwrap());
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.11"));
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
    }
}
