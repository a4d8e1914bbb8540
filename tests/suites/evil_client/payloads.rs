//! Harm within the session: replies that nobody takes, payloads that never come, lengths that cannot be.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use tests::needs;

use super::{MIB, Victim, entered, request};

/// Sessions of one attacker: as many as one peer may have.
const SESSIONS: usize = 192;

/// What all clients together may take: the server's budget of 1 GiB, and what the sessions cost themselves.
const PEAK_MIB: u64 = 1024 + 256;

/// Each asks for as much as it may, and reads nothing of it.
#[test]
fn clients_that_take_no_replies_leave_room_for_others() {
    needs!("nbdcopy");
    let victim = Victim::new(&[]);
    let mut deaf = Vec::new();
    for _ in 0..SESSIONS {
        let mut wire = victim.unix();
        entered(&mut wire, "w");
        wire.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let requests: Vec<u8> = (0..64)
            .flat_map(|n| request(0, n, n * 4 * MIB, 4 << 20))
            .collect();
        // As much of it as is taken.
        wire.write_all(&requests).ok();
        deaf.push(wire);
    }
    victim.serves_good_clients(victim.unix_uri());
    let peak = victim.peak_mib();
    eprintln!("{SESSIONS} clients that take nothing: {peak} MiB at most");
    assert!(peak < PEAK_MIB, "{peak} MiB");
    drop(deaf);
    victim.ends_well();
}

/// Each begins a write and keeps the last byte back: the longest that there may be, and then ever shorter ones, until nothing is left of
/// the memory for all.
#[test]
fn clients_that_never_end_their_writes_leave_room_for_others() {
    needs!("nbdcopy");
    let victim = Victim::new(&[]);
    let payload = vec![9; (32 << 20) - 1];
    let lengths = [(31, 32 << 20), (31, 1 << 20), (60, 16 << 10), (70, 512)];
    let lengths = lengths
        .into_iter()
        .flat_map(|(count, length)| std::iter::repeat_n(length, count));
    let lengths: Vec<u32> = lengths.collect();
    assert_eq!(lengths.len(), SESSIONS);
    let enter = |length: &u32| {
        let mut wire = victim.unix();
        entered(&mut wire, "w");
        wire.write_all(&request(1, 1, 0, *length)).unwrap();
        wire.set_nonblocking(true).unwrap();
        wire
    };
    let mut stuck: Vec<_> = lengths.iter().map(enter).collect();
    let begun = Instant::now();
    let mut sent = vec![0; SESSIONS];
    while begun.elapsed() < Duration::from_secs(4) {
        for ((wire, length), sent) in stuck.iter_mut().zip(&lengths).zip(&mut sent) {
            let all_but_one = usize::try_from(*length).unwrap() - 1;
            // Whoever is let in or ended is no matter here.
            *sent += wire.write(&payload[*sent..all_but_one]).unwrap_or(0);
        }
    }
    let begun = Instant::now();
    victim.serves_good_clients(victim.unix_uri());
    let (peak, sent) = (victim.peak_mib(), sent.iter().sum::<usize>() >> 20);
    eprintln!(
        "{SESSIONS} writes that never end, {sent} MiB of them sent: {peak} MiB at most, a good client served after {:?}",
        begun.elapsed()
    );
    assert!(peak < PEAK_MIB, "{peak} MiB");
    drop(stuck);
    victim.ends_well();
}

/// CVE-2011-0530, CVE-2005-3534.
#[test]
fn a_write_of_a_length_that_cannot_be_ends_its_session_alone() {
    let victim = Victim::new(&[]);
    let mut good = victim.unix();
    entered(&mut good, "w");
    for export in ["v", "w"] {
        for length in [u32::MAX, u32::MAX - 27, 1 << 31, (32 << 20) + 1] {
            let begun = Instant::now();
            let mut wire = victim.unix();
            entered(&mut wire, export);
            wire.write_all(&request(1, 4711, 0, length)).unwrap();
            wire.write_all(&[0; 4096]).ok();
            // A server that took it would take more of it, for as long as some comes.
            wire.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut answer = Vec::new();
            while wire
                .read_to_end(&mut answer)
                .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            {
                wire.write_all(&[0]).ok();
                assert!(begun.elapsed() < Duration::from_secs(60), "{length}");
            }
            // It may be told, and that in one simple reply: no success.
            assert!(
                answer.is_empty() || (answer.len() == 16 && answer[4..8] != [0; 4]),
                "{answer:?}"
            );
        }
    }
    good.write_all(&request(0, 1, 0, 512)).unwrap();
    let mut answer = [0; 16 + 512];
    good.read_exact(&mut answer).unwrap();
    assert_eq!(answer[4..8], [0; 4]);
    assert!(victim.peak_mib() < 128, "{} MiB", victim.peak_mib());
    victim.ends_well();
}
