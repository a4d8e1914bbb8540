//! Clients that break a rule, or leave, with more behind it that nobody reads: what was answered before reaches them all the same. A
//! socket that is closed with unread bytes in it sends a reset, and over TCP a reset takes away what is still on its way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::{MIB, Victim, enter, option, request};

/// Bytes behind the end, more than is read at a time.
const BEHIND: usize = 1 << 20;

/// A connection whose replies wait at the server's side for the most part.
fn narrow(victim: &Victim) -> TcpStream {
    let stream = victim.tcp(&victim.tcp_address());
    setsockopt(&stream, sockopt::RcvBuf, &(64 << 10)).unwrap();
    stream
}

/// Sends all of it without waiting for answers, and gives back all that came, read slowly.
fn talk(mut stream: TcpStream, sent: Vec<u8>) -> (Vec<u8>, std::io::Result<usize>) {
    let mut to_server = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        // The server may have closed its side before all of it is there.
        to_server.write_all(&sent).ok();
    });
    let mut heard = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    // Time for the server to think that it is done.
    thread::sleep(Duration::from_millis(300));
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(0),
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) => break Err(error),
        }
        thread::sleep(Duration::from_millis(2));
    };
    drop(stream);
    writer.join().unwrap();
    (heard, ended)
}

#[test]
fn what_was_answered_before_the_end_of_a_session_is_heard() {
    const READS: u32 = 40;
    const LENGTH: u32 = 64 << 10;
    let victim = Victim::new(&[]);
    let reads = |mut sent: Vec<u8>| {
        for n in 0..u64::from(READS) {
            sent.extend(request(0, n, n * u64::from(LENGTH), LENGTH));
        }
        sent
    };
    for (what, end) in [
        ("no request at all", vec![0xee; 28]),
        ("a goodbye", request(2, 0, 0, 0)),
    ] {
        let sent = [reads(enter("v")), end, vec![0xdd; BEHIND]].concat();
        let (heard, ended) = talk(narrow(&victim), sent);
        let wanted = 18 + 10 + READS as usize * (16 + LENGTH as usize);
        assert_eq!(heard.len(), wanted, "{what}: {ended:?}");
        assert_eq!(ended.unwrap(), 0, "{what}");
    }
    victim.ends_well();
}

#[test]
fn what_was_answered_before_the_end_of_a_handshake_is_heard() {
    let victim = Victim::new(&[]);
    for (what, end) in [
        ("no option at all", vec![0xee; 16]),
        ("a giant one", option(3, u32::MAX, &[])),
        ("a goodbye", option(2, 0, &[])),
    ] {
        let mut sent = 3_u32.to_be_bytes().to_vec();
        for _ in 0..6000 {
            sent.extend(option(3, 0, &[]));
        }
        let answers = |goodbyes: usize| {
            // SERVER, with name and description, for each of the exports; ACK.
            let mut stream = victim.tcp(&victim.tcp_address());
            stream
                .write_all(&[&sent[..20], &option(2, 0, &[])].concat())
                .unwrap();
            let mut once = Vec::new();
            stream.read_to_end(&mut once).unwrap();
            let listed = once.len() - 18 - 20;
            18 + 6000 * listed + goodbyes * 20
        };
        let wanted = answers(usize::from(what == "a goodbye"));
        let (heard, ended) = talk(narrow(&victim), [&sent[..], &end, &[0xdd; BEHIND]].concat());
        assert_eq!(heard.len(), wanted, "{what}: {ended:?}");
        assert_eq!(ended.unwrap(), 0, "{what}");
    }
    victim.ends_well();
}

/// The time for it is bounded, and so is what is read for nothing.
#[test]
fn nobody_is_listened_to_for_ever() {
    let victim = Victim::new(&[]);
    let goodbye = [enter("v"), request(2, 0, 0, 0)].concat();
    let mut silent = victim.unix();
    silent.write_all(&goodbye).unwrap();
    let begun = Instant::now();
    let mut endless = victim.unix();
    endless.write_all(&goodbye).unwrap();
    let junk = vec![0; 1 << 20];
    let mut sent = 0;
    while endless.write_all(&junk).is_ok() {
        sent += junk.len();
    }
    assert!(sent as u64 <= 32 * MIB, "{sent} bytes");
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), 28);
    // Only now is the socket itself closed: to write fails.
    while silent.write_all(&[0]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(100));
        thread::sleep(Duration::from_millis(100));
    }
    victim.ends_well();
}
