//! Writers that overwrite a live volume in random places, over NBD, until they are stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};

use super::client::Client;
use super::log::{Change, Kind};

/// Each writer has every n-th stripe for itself, so that its own log tells what is in it. It does not divide a copy unit:
/// most units have several writers, and many requests touch two units.
const STRIPE: u64 = 24 << 10;

/// A stream of numbers that a seed repeats.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number, below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.number() >> 16) % bound
    }
}

/// Threads with a connection each.
pub struct Writers {
    stop: Arc<AtomicBool>,
    /// Held shared around each request.
    pause: Arc<RwLock<()>>,
    requests: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// One thread for each client; all clients of one volume have to be in `clients`. Errors end a thread quietly if
    /// `until_killed`, and fail the test otherwise.
    pub fn start(clients: Vec<Client>, seed: u64, until_killed: bool) -> Self {
        eprintln!("writers with seed {seed}");
        let (stop, pause, requests) = (Arc::default(), Arc::default(), Arc::default());
        let count = clients.len() as u64;
        let threads = clients.into_iter().zip(0..).map(|(client, index)| {
            let (stop, pause, requests): (Arc<AtomicBool>, Arc<RwLock<()>>, Arc<AtomicU64>) =
                (Arc::clone(&stop), Arc::clone(&pause), Arc::clone(&requests));
            thread::spawn(move || {
                let mut random = Random::new(seed.wrapping_add(index << 32));
                while !stop.load(Ordering::Relaxed) {
                    let change = change(&mut random, client.size(), count, index);
                    let turn = pause.read().unwrap();
                    let done = client.try_change(change);
                    drop(turn);
                    match done {
                        Ok(()) => requests.fetch_add(1, Ordering::Relaxed),
                        Err(_) if until_killed => return,
                        Err(error) => panic!("{change:?}: {error}"),
                    };
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            pause,
            requests,
        }
    }

    /// Awaits every request in flight, and lets none begin until the guard is dropped.
    pub fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.pause.write().unwrap()
    }

    /// Waits until this many more requests were replied to.
    pub fn await_requests(&self, more: u64) {
        let wanted = self.requests.load(Ordering::Relaxed) + more;
        while self.requests.load(Ordering::Relaxed) < wanted {
            assert!(
                self.threads.iter().any(|thread| !thread.is_finished()),
                "the writers ended"
            );
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Ends the threads, and gives the number of requests that were replied to. A writer that saw an error fails here.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// A request in a stripe of writer `index`.
fn change(random: &mut Random, size: u64, count: u64, index: u64) -> Change {
    let stripe = random.below(size / STRIPE / count) * count + index;
    let within = random.below(STRIPE);
    let len = match random.below(3) {
        0 => 512,
        1 => random.below(STRIPE) + 1,
        _ => STRIPE,
    };
    let kind = match random.below(8) {
        0 => Kind::Trim,
        1 => Kind::WriteZeroes { no_hole: false },
        2 => Kind::WriteZeroes { no_hole: true },
        _ => Kind::Write((random.number() | 1).to_le_bytes()),
    };
    Change {
        offset: stripe * STRIPE + within,
        len: len.min(STRIPE - within),
        kind,
    }
}
