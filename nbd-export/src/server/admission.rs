//! Who is let in: a crowd of half-open handshakes, or one client with many connections, is to cost others as little as possible.
//!
//! A connection that is still in its handshake costs little, and whoever floods us has no reason to end one. So a new connection is
//! always let in, and where there are too many handshakes one goes: the oldest of the largest crowd, or the oldest of all where nobody
//! is one; but none that waits for us, which has a seat already. What an honest client gets is time: one behind a slow link can still be pushed out, by a flood from its own address or from
//! many. A session costs more and is the client's for as long as it likes, so seats are limited, and no peer may have all of them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::limits::{CROWD, HANDSHAKES_MAX, Limits};

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
    /// The client has said what it wants, has a seat for it, and waits for us.
    waits: bool,
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
    /// Whether the operator was told that it found no seat.
    told: AtomicBool,
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
        let handshake = Handshake {
            peer,
            waits: false,
            _stay: stay,
        };
        state.handshakes.insert(number, handshake);
        drop(state);
        let ticket = Ticket {
            admission: Arc::clone(self),
            number,
            peer,
            seated: AtomicBool::new(false),
            told: AtomicBool::new(false),
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
        let mut peers: BTreeMap<Peer, (usize, u64)> = BTreeMap::new();
        let idle = || self.handshakes.iter().filter(|(_, handshake)| !handshake.waits);
        for (number, handshake) in idle() {
            peers.entry(handshake.peer).or_insert((0, *number)).0 += 1;
        }
        let largest = peers
            .into_values()
            .filter(|(count, _)| *count > CROWD)
            .max_by_key(|(count, oldest)| (*count, Reverse(*oldest)));
        let oldest = idle().next().map(|(number, _)| *number);
        if let Some(victim) = largest.map(|(_, oldest)| oldest).or(oldest) {
            self.handshakes.remove(&victim);
        }
    }

    /// Peers without any are not remembered.
    fn leave_seats(&mut self, peer: Peer, seats: usize) {
        if let Some(taken) = self.taken.get_mut(&peer) {
            *taken -= seats;
            if *taken == 0 {
                self.taken.remove(&peer);
            }
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

    /// Gives its seat back, if it has one.
    pub(super) fn leave_seat(&self) {
        let mut state = self.admission.state();
        let seats = usize::from(self.seated.swap(false, Ordering::Relaxed));
        state.leave_seats(self.peer, seats);
    }

    /// The client waits for us until what this gives is dropped, and makes no room for others meanwhile.
    pub(super) fn waits(&self) -> Waits<'_> {
        self.set_waits(true);
        Waits(self)
    }

    fn set_waits(&self, waits: bool) {
        if let Some(handshake) = self.admission.state().handshakes.get_mut(&self.number) {
            handshake.waits = waits;
        }
    }

    /// Whether it is news that there is no seat: a client may ask as often as it likes, and must not fill the log.
    pub(super) fn is_news(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// The handshake is over: nobody's crowd any more.
    pub(super) fn leave_handshake(&self) {
        self.admission.state().handshakes.remove(&self.number);
    }
}

/// A client that waits for us.
pub(super) struct Waits<'a>(&'a Ticket);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set_waits(false);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        state.handshakes.remove(&self.number);
        state.leave_seats(self.peer, usize::from(*self.seated.get_mut()));
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
    fn who_waits_for_us_makes_no_room() {
        let admission = admission(8);
        let (ticket, mut waiting) = admission.enter(Peer::Process(1));
        let waits = ticket.waits();
        // Of its own peer, and of so many that nobody is a crowd.
        let flood = |peers: i32| {
            let peer = |number| Peer::Process(1 + number % peers);
            let comers = (0..)
                .take(HANDSHAKES_MAX)
                .map(|number| admission.enter(peer(number)));
            comers.collect::<Vec<_>>()
        };
        for peers in [1, 100] {
            let mut comers = flood(peers);
            assert!(
                is_evicted(&mut comers[0].1) && !is_evicted(&mut waiting),
                "{peers}"
            );
        }
        drop(waits);
        flood(1);
        assert!(is_evicted(&mut waiting), "like any other");
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
    fn without_a_crowd_the_oldest_goes_whatever_its_address() {
        let admission = admission(8);
        // A pool of a few connections is no crowd, and the highest address is nobody's fault.
        let high = Peer::V4(Ipv4Addr::BROADCAST);
        let mut others: Vec<_> = (0..HANDSHAKES_MAX - CROWD)
            .map(|n| admission.enter(Peer::Process(i32::try_from(n).unwrap())))
            .collect();
        let mut pool: Vec<_> = (0..CROWD).map(|_| admission.enter(high)).collect();
        let newer: Vec<_> = (0..others.len())
            .map(|n| admission.enter(Peer::V6(n as u64)))
            .collect();
        assert!(others.iter_mut().all(|(_, evicted)| is_evicted(evicted)));
        assert!(!pool.iter_mut().any(|(_, evicted)| is_evicted(evicted)));
        let _one_more = admission.enter(Peer::Unnamed);
        assert!(is_evicted(&mut pool[0].1), "its turn has come");
        drop(newer);
    }

    #[test]
    fn of_two_crowds_the_larger_loses_its_oldest_and_of_equal_ones_the_older() {
        let admission = admission(8);
        let crowd = |peer, count| -> Vec<_> { (0..count).map(|_| admission.enter(peer)).collect() };
        let mut good = crowd(Peer::Process(1), CROWD);
        // The older of the two is the one that comes first by address.
        let mut older = crowd(Peer::Process(2), CROWD + 1);
        let mut newer = crowd(Peer::V6(0), CROWD + 1);
        admission.make_room();
        assert!(is_evicted(&mut older[0].1) && !is_evicted(&mut newer[0].1));
        admission.make_room();
        assert!(is_evicted(&mut newer[0].1), "now it is the larger");
        assert!(!older[1..].iter_mut().any(|(_, evicted)| is_evicted(evicted)));
        // Nobody is a crowd any more.
        admission.make_room();
        assert!(is_evicted(&mut good[0].1));
    }

    #[test]
    fn a_client_without_a_seat_is_news_once() {
        let admission = admission(1);
        let (first, second) = (
            admission.enter(Peer::Process(1)).0,
            admission.enter(Peer::Process(2)).0,
        );
        assert!(first.take_seat());
        let told = (0..100)
            .filter(|_| !second.take_seat() && second.is_news())
            .count();
        assert_eq!(told, 1);
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
    fn a_seat_that_is_left_is_free_and_can_be_taken_again() {
        let admission = admission(1);
        let (first, second) = (
            admission.enter(Peer::Process(1)).0,
            admission.enter(Peer::Process(2)).0,
        );
        assert!(first.take_seat() && !second.take_seat());
        second.leave_seat();
        assert!(!second.take_seat(), "it had none");
        first.leave_seat();
        assert!(second.take_seat() && !first.take_seat());
        drop(first);
        drop(second);
        assert!(admission.state().taken.is_empty());
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
