//! Harm before the session: slow, huge, cut short, without end, and very many.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use tests::needs;

use super::{GOOD_PATIENCE, Victim, Wire, enter, entered, option, request};

/// Half-open handshakes that are tried.
const CROWD: usize = 10_000;

/// What one of a crowd sends before it falls silent.
fn beginning(n: usize) -> Vec<u8> {
    let flags = 3_u32.to_be_bytes().to_vec();
    let with = |more: Vec<u8>| [flags.clone(), more].concat();
    match n % 6 {
        0 => Vec::new(),
        1 => flags[..2].to_vec(),
        2 => flags.clone(),
        3 => with(b"IHAVE".to_vec()),
        // Nearly the longest option there may be, and its last byte never comes.
        4 => with(option(6, 64 << 10, &[0; 60_000])),
        // A LIST that is answered, and then nothing.
        _ => with(option(3, 0, &[])),
    }
}

/// From one process, that is from one address: the good client is its neighbour.
#[test]
fn ten_thousand_half_open_handshakes_lock_nobody_out() {
    needs!("nbdcopy");
    let victim = Victim::new(&[]);
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let room = usize::try_from(limit).unwrap().saturating_sub(200);
    let (crowd_len, tcp) = (CROWD.min(room), victim.tcp_address());
    let tcp_uri = format!("nbd://{tcp}/v");
    let mut crowd: Vec<Box<dyn Wire>> = Vec::with_capacity(crowd_len);
    let begun = Instant::now();
    for n in 0..crowd_len {
        let mut wire: Box<dyn Wire> = match n % 2 {
            0 => Box::new(victim.unix()),
            _ => Box::new(victim.tcp(&tcp)),
        };
        // It may have had to make room already.
        wire.write_all(&beginning(n)).ok();
        crowd.push(wire);
        if n % 2000 == 1999 {
            // The last of either kind was greeted, so none is still to come that would take the place of the good client.
            let mut greeting = [0; 18];
            for last in crowd.iter_mut().rev().take(2) {
                last.read_exact(&mut greeting).unwrap();
            }
            victim.serves_good_clients(victim.unix_uri());
            victim.serves_good_clients(&tcp_uri);
        }
    }
    let peak = victim.peak_mib();
    eprintln!(
        "{crowd_len} half-open handshakes in {:?}, of which the server keeps 512; its memory: {peak} MiB at most",
        begun.elapsed()
    );
    assert!(peak < 256, "{peak} MiB");
    drop(crowd);
    victim.serves_good_clients(victim.unix_uri());
    victim.ends_well();
}

/// A TCP connection that comes from another address of this machine.
fn from_elsewhere(to: &str) -> Option<TcpStream> {
    let to: std::net::SocketAddrV4 = to.parse().unwrap();
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 2, 0)).ok()?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to)).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(GOOD_PATIENCE)).unwrap();
    Some(stream)
}

/// Connections of a flood that may wait to be greeted: fewer than the kernel keeps for a server that is slow to take them.
const UNGREETED: usize = 256;

/// Says that a flood is over when it goes, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The flood goes on while good clients come, and they do not wait for its end: from another process, and from another address.
#[test]
fn a_flood_that_does_not_end_locks_nobody_out() {
    needs!("nbdcopy");
    let victim = Victim::new(&[]);
    let tcp = victim.tcp_address();
    let over = AtomicBool::new(false);
    let tried = AtomicUsize::new(0);
    thread::scope(|scope| {
        for family in ["unix", "tcp"] {
            let (victim, tcp, over, tried) = (&victim, &tcp, &over, &tried);
            scope.spawn(move || {
                // More than the server keeps, so that it has to let some of them go all the time.
                let mut crowd: VecDeque<Box<dyn Wire>> = VecDeque::new();
                while !over.load(Ordering::Relaxed) {
                    let mut wire: Box<dyn Wire> = match family {
                        "unix" => Box::new(victim.unix()),
                        _ => match from_elsewhere(tcp) {
                            Some(stream) => Box::new(stream),
                            None => continue,
                        },
                    };
                    let n = tried.fetch_add(1, Ordering::Relaxed);
                    wire.write_all(&beginning(n)).ok();
                    crowd.push_back(wire);
                    if crowd.len() > 1500 {
                        crowd.pop_front();
                    }
                    // Not faster than they are let in, or sent away, on this machine: the kernel's queue would overflow, which is before
                    // the server can do anything.
                    if let Some(before) = crowd.len().checked_sub(UNGREETED) {
                        crowd[before].read_exact(&mut [0; 18]).ok();
                    }
                    thread::sleep(Duration::from_micros(500));
                }
            });
        }
        let _ends = Over(&over);
        while tried.load(Ordering::Relaxed) < 1200 {
            thread::sleep(Duration::from_millis(5));
        }
        let before = tried.load(Ordering::Relaxed);
        for _ in 0..2 {
            victim.serves_good_clients(victim.unix_uri());
            victim.serves_good_clients(&format!("nbd://{tcp}/v"));
        }
        let during = tried.load(Ordering::Relaxed) - before;
        assert!(during > 100, "{during} attempts are no flood");
    });
    let peak = victim.peak_mib();
    assert!(peak < 256, "{peak} MiB");
    victim.ends_well();
}

#[test]
fn a_slow_handshake_is_served_and_an_endless_one_is_ended() {
    let slow = |victim: &Victim, pause: Duration| {
        let mut wire = victim.unix();
        for byte in enter("v") {
            if wire.write_all(&[byte]).is_err() {
                return false;
            }
            thread::sleep(pause);
        }
        let mut answer = [0; 28];
        wire.read_exact(&mut answer).is_ok()
    };
    // Longer than the ten seconds that there are usually.
    let patient = Victim::new(&["--handshake-timeout", "90"]);
    assert!(
        slow(&patient, Duration::from_millis(450)),
        "byte by byte, but in time"
    );
    patient.ends_well();
    let victim = Victim::new(&["--handshake-timeout", "4"]);
    assert!(!slow(&victim, Duration::from_secs(1)), "byte by byte, for ever");
    victim.ends_well();
}

/// CVE-2017-15119, CVE-2022-26495: lengths that nobody could mean.
#[test]
fn a_giant_option_takes_neither_memory_nor_time() {
    let victim = Victim::new(&["--handshake-timeout", "60"]);
    let before = victim.peak_mib();
    for code in (0..=11).chain([0xffff_ffff]) {
        for length in [u32::MAX, u32::MAX - 1, 1 << 31, (64 << 10) + 1] {
            let begun = Instant::now();
            let mut wire = victim.unix();
            wire.write_all(&3_u32.to_be_bytes()).unwrap();
            wire.write_all(&option(code, length, &[0; 1000])).ok();
            let mut answer = Vec::new();
            // Closed by the server, politely or not.
            wire.read_to_end(&mut answer).ok();
            assert!(
                begun.elapsed() < Duration::from_secs(50),
                "option {code} of {length} bytes: {:?}",
                begun.elapsed()
            );
        }
    }
    let grown = victim.peak_mib() - before;
    assert!(grown < 32, "{grown} MiB");
    victim.ends_well();
}

/// CVE-2013-7441, CVE-2017-9524, CVE-2017-7539: a client that leaves at any moment, or asks for what there is not.
#[test]
fn an_early_close_at_any_byte_costs_nobody_else_anything() {
    needs!("nbdcopy");
    let victim = Victim::new(&[]);
    let tcp = victim.tcp_address();
    let mut talk = 3_u32.to_be_bytes().to_vec();
    talk.extend(option(8, 0, &[]));
    talk.extend(option(3, 0, &[]));
    // GO w, no information requests.
    talk.extend(option(7, 7, &[0, 0, 0, 1, b'w', 0, 0]));
    talk.extend(request(0, 1, 0, 65_536));
    talk.extend(request(1, 2, 0, 512));
    talk.extend([1; 512]);
    talk.extend(request(3, 3, 0, 0));
    for cut in 0..=talk.len().min(400) {
        let mut unix = victim.unix();
        unix.write_all(&talk[..cut]).unwrap();
        drop(unix);
        let mut reset = victim.tcp(&tcp);
        reset.write_all(&talk[..cut]).ok();
        // Closed by a reset, replies unread.
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&reset, sockopt::Linger, &linger).unwrap();
    }
    for name in ["", "missing", "V", "v ", "../frozen", "v\u{0}"] {
        let mut wire = victim.unix();
        wire.write_all(&enter(name)).unwrap();
        let mut answer = Vec::new();
        wire.read_to_end(&mut answer).ok();
        assert_eq!(answer.len(), 18, "{name}: nothing behind the greeting");
    }
    let mut wire = victim.unix();
    entered(&mut wire, "v");
    victim.serves_good_clients(victim.unix_uri());
    victim.ends_well();
}
