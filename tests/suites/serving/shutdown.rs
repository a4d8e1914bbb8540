//! The end of an agent, and of an export.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::needs;
use tests::program::{Host, nbd_export};

use super::Ground;

fn serve(ground: &Ground) -> Host {
    Host::serve(&[&ground.control(), "--socket", &ground.path("s"), &ground.volume()])
}

/// A client that asks for much and takes nothing.
fn deaf(socket: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    // EXPORT_NAME, without zeroes.
    let mut out = 3_u32.to_be_bytes().to_vec();
    out.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\x01v");
    for cookie in 0..8_u64 {
        out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&0_u64.to_be_bytes());
        out.extend_from_slice(&(4_u32 << 20).to_be_bytes());
    }
    stream.write_all(&out).unwrap();
    let mut size_and_flags = [0; 10];
    stream.read_exact(&mut size_and_flags).unwrap();
    stream
}

#[test]
fn a_second_signal_does_not_wait_for_a_client_that_hears_nothing() {
    let ground = Ground::new();
    let host = serve(&ground);
    let _deaf = deaf(&ground.path("s"));
    std::thread::sleep(Duration::from_millis(300));
    let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap());
    let begun = Instant::now();
    kill(pid, Signal::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert!(
        kill(pid, None).is_ok() && std::path::Path::new(&format!("/proc/{pid}/exe")).exists(),
        "requests in flight have time"
    );
    assert!(host.terminate().success());
    // They have ten seconds after the first.
    assert!(
        begun.elapsed() < Duration::from_millis(9500),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_deaf_client_holds_the_end_up_for_no_longer_than_the_deadline() {
    let ground = Ground::new();
    let host = serve(&ground);
    let _deaf = deaf(&ground.path("s"));
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    assert!(host.terminate().success());
    assert!(
        begun.elapsed() < Duration::from_secs(100),
        "{:?}",
        begun.elapsed()
    );
}

/// CVE-2015-0847: signals in the midst of the work.
#[test]
fn a_storm_of_signals_under_load_ends_in_good_order() {
    needs!("nbdcopy");
    let ground = Ground::new();
    let host = serve(&ground);
    let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap());
    let mut load = std::process::Command::new("sh")
        .args([
            "-c",
            "while nbdcopy \"$0\" null: 2>/dev/null; do :; done",
            host.uri("v"),
        ])
        .spawn()
        .unwrap();
    let storm = Instant::now();
    while storm.elapsed() < Duration::from_secs(1) {
        for signal in [Signal::SIGCHLD, Signal::SIGURG, Signal::SIGWINCH, Signal::SIGCONT] {
            kill(pid, signal).unwrap();
        }
    }
    assert!(
        load.try_wait().unwrap().is_none(),
        "clients are served in the storm"
    );
    // Until nobody is there to take them.
    for _ in 0..50 {
        kill(pid, Signal::SIGTERM).unwrap();
        kill(pid, Signal::SIGINT).unwrap();
    }
    assert!(host.terminate().success());
    load.wait().unwrap();
    // The volume was frozen by an immutable flag and a lease: both are gone.
    std::fs::write(ground.path("volume"), b"thawed").unwrap();
    assert!(!std::path::Path::new(&ground.path("s")).exists());
}

#[test]
fn a_thaw_is_told_on_every_connection() {
    needs!("nbdsh");
    let ground = Ground::new();
    let host = serve(&ground);
    let control = ground.path("control");
    let told = ground.nbdsh(&format!(
        "import subprocess, errno\n\
         handles = [nbd.NBD() for _ in range(8)]\n\
         for n, one in enumerate(handles):\n    \
             one.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)\n    \
             one.connect_uri('{uri}')\n    \
             one.pread(4096, 0)\n\
         subprocess.run([program, 'thaw', 'v', '--control', '{control}'], check=True, stdout=subprocess.DEVNULL)\n\
         def refused(ask):\n    \
             try:\n        ask()\n    \
             except nbd.Error as error:\n        return error.errno\n\
         for one in handles:\n    \
             print(refused(lambda: one.pread(4096, 0)), refused(lambda: one.block_status(4096, 0, lambda *a: 0)))",
        uri = host.uri("v"),
    ));
    let answers: Vec<&str> = told.lines().collect();
    assert_eq!(answers, ["ESHUTDOWN ESHUTDOWN"; 8], "{told}");
    nbd_export(&["list", "--control", &control]);
    assert!(host.terminate().success());
}
