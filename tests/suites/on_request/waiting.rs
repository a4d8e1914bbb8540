//! What a client holds of the server while it is told to come again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use tests::needs_loop_devices;

use super::hooks::Hooks;
use super::{Ground, NEW, run};

const GO: u32 = 7;

/// GO of an export, without wishes.
fn go(export: &str) -> Vec<u8> {
    let name = export.as_bytes();
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&[0, 0]);
    let mut option = b"IHAVEOPT".to_vec();
    option.extend_from_slice(&GO.to_be_bytes());
    option.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    option.extend(data);
    option
}

fn greeted(ground: &Ground) -> UnixStream {
    let mut client = UnixStream::connect(ground.site.socket()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    client.write_all(&[0, 0, 0, 3]).unwrap();
    client
}

/// The code of the next reply; `None` at the end of the connection.
fn reply(client: &mut UnixStream) -> Option<u32> {
    let mut header = [0; 20];
    client.read_exact(&mut header).ok()?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut text = vec![0; usize::try_from(word(16)).unwrap()];
    client.read_exact(&mut text).ok()?;
    Some(word(12))
}

const ERR_POLICY: u32 = (1 << 31) + 2;

#[test]
fn a_client_that_is_refused_again_and_again_gets_no_more_time() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let ground = Ground::with_listen("handshake-timeout = 5", "", "[on-request]\nevery = 3600");
    assert!(
        run("nbdinfo", &["--size", &ground.site.uri(NEW)])
            .status
            .success()
    );
    let begun = Instant::now();
    let mut client = greeted(&ground);
    loop {
        assert!(begun.elapsed() < Duration::from_secs(100), "it goes on for ever");
        if client.write_all(&go(NEW)).is_err() {
            break;
        }
        match reply(&mut client) {
            Some(code) => assert_eq!(code, ERR_POLICY),
            None => break,
        }
        thread::sleep(Duration::from_millis(200));
    }
    assert!(begun.elapsed() >= Duration::from_millis(4500), "it had its time");
}

#[test]
fn a_client_that_is_refused_takes_no_seat() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let ground = Ground::with_listen(
        "max-connections = 1\nhandshake-timeout = 60",
        "",
        "[on-request]\nevery = 3600",
    );
    assert!(
        run("nbdinfo", &["--size", &ground.site.uri(NEW)])
            .status
            .success()
    );
    let left = ground.frozen();
    let mut client = greeted(&ground);
    client.write_all(&go(NEW)).unwrap();
    assert_eq!(reply(&mut client), Some(ERR_POLICY));
    // Still there, and another one is let in.
    let other = run("nbdinfo", &["--size", &ground.site.uri(&left[0])]);
    assert!(other.status.success(), "{other:?}");
    drop(client);
}

/// It has said what it wants, and has its seat: it is no half-open handshake, of which the oldest go.
#[test]
fn a_client_that_waits_for_a_freeze_makes_no_room_for_others() {
    needs_loop_devices!("mkfs.xfs");
    let hooks = Hooks::new();
    hooks.stop();
    let ground = Ground::with_listen("handshake-timeout = 60", "", &hooks.table());
    let mut client = greeted(&ground);
    client.write_all(&go(NEW)).unwrap();
    hooks.log_ends_with("begins");
    // All of one process. There is room for 512.
    let crowd: Vec<_> = (0..600).map(|_| greeted(&ground)).collect();
    hooks.go_on();
    let code = reply(&mut client).expect("it is answered");
    assert!(code & (1 << 31) == 0, "{code:#x}");
    drop(crowd);
}
