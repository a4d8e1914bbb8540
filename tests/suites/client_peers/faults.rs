//! Servers that fail: every failure is typed, and none is taken for data.

use std::time::{Duration, Instant};

use nbd_export::proto::{Errno, PeerIncompatible, ProtocolError};
use tests::needs;
use tests::peer::Peer;

use super::*;

#[tokio::test]
async fn a_failing_read_is_an_error_and_the_session_goes_on() {
    needs!("nbdkit");
    let disk = Disk::new();
    for replies in ["--no-sr", "-r"] {
        let trigger = disk.directory.path().join("trigger");
        let peer = Peer::nbdkit(&[
            "-r",
            replies,
            "--filter=error",
            "file",
            &disk.path(),
            "error-pread=EIO",
            "error-pread-rate=100%",
            &format!("error-file={}", trigger.display()),
        ]);
        let connection = Connection::connect(&peer.uri(""), vec![]).await.unwrap();
        std::fs::write(&trigger, "").unwrap();
        for _ in 0..3 {
            let error = connection.read(0, 4096).await.unwrap_err();
            assert_eq!(server_errno(error), Errno::Io);
        }
        std::fs::remove_file(&trigger).unwrap();
        assert_reads(&connection, &disk).await;
    }
}

#[tokio::test]
async fn a_killed_server_fails_what_is_in_flight() {
    needs!("nbdkit");
    let disk = Disk::new();
    let mut peer = Peer::nbdkit(&["-r", "--filter=delay", "file", &disk.path(), "delay-read=30"]);
    let connection = Connection::connect(&peer.uri(""), vec![]).await.unwrap();
    let (first, second, ()) = tokio::join!(connection.read(0, 4096), connection.read(4096, 4096), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        peer.kill();
    });
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(error.is_connection_lost(), "{error:?}");
    }
    assert!(connection.read(0, 4096).await.unwrap_err().is_connection_lost());
    let again = Connection::connect(&peer.uri(""), vec![]).await;
    assert!(again.is_err_and(|error| error.is_connection_lost()));
}

#[tokio::test]
async fn requests_to_a_slow_server_wait_beside_each_other() {
    needs!("nbdkit");
    let disk = Disk::new();
    let peer = Peer::nbdkit(&["-r", "--filter=delay", "file", &disk.path(), "delay-read=3"]);
    let connection = Connection::connect(&peer.uri(""), vec![]).await.unwrap();
    let began = Instant::now();
    // 16 reads of which every one takes 3 s.
    let reads = (0..16).map(|n| connection.read(n * MIB, 4096));
    for read in futures_util::future::join_all(reads).await {
        read.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(16 * 3 / 2));
}

#[tokio::test]
async fn servers_that_cannot_be_used_say_so() {
    needs!("nbdkit");
    let disk = Disk::new();
    let incompatible = async |peer: &Peer| match Connection::connect(&peer.uri(""), vec![]).await {
        Err(NbdError::Protocol(ProtocolError::Incompatible(why))) => why,
        other => panic!("{:?}", other.map(|_| ())),
    };
    let old = Peer::nbdkit(&["-r", "-o", "file", &disk.path()]);
    assert_eq!(incompatible(&old).await, PeerIncompatible::Oldstyle);

    let keys = disk.directory.path().join("keys");
    std::fs::write(&keys, format!("alice:{}\n", "0f".repeat(32))).unwrap();
    let tls = Peer::nbdkit(&[
        "-r",
        "--tls=require",
        &format!("--tls-psk={}", keys.display()),
        "file",
        &disk.path(),
    ]);
    assert_eq!(incompatible(&tls).await, PeerIncompatible::TlsRequired);
}
