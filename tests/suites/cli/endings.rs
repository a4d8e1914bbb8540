//! How a program ends, by whatever asks it to.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::daemon::Proxy;
use tests::program::{self, Host};

#[test]
fn every_polite_signal_gives_back_what_was_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("volume"), [1; 4096]).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let host = Host::serve(&[&at("volume"), "--socket", &at("s"), "--control", &at("c")]);
        assert_eq!(host.end_by(signal).code(), Some(0), "{signal}");
        for socket in ["s", "c"] {
            assert!(!dir.path().join(socket).exists(), "{signal} leaves {socket}");
        }
        // A volume that is still immutable cannot be opened for this.
        std::fs::OpenOptions::new()
            .append(true)
            .open(at("volume"))
            .unwrap_or_else(|error| panic!("{signal}: {error}"));
    }
}

/// A terminal that was closed, or a log that nobody reads any more: who has nobody to tell has to hear all the same.
#[test]
fn a_program_that_can_tell_nobody_ends_in_good_order() {
    let proxy = Proxy::new("", "");
    let at = |name: &str| proxy.path(name).to_str().unwrap().to_owned();
    std::fs::write(at("volume"), [1; 4096]).unwrap();
    let serve = [
        "serve",
        &at("volume"),
        "--socket",
        &at("s"),
        "--control",
        &at("c"),
    ];
    let daemon = ["daemon", "--config", &at("config.toml")];
    for (program, arguments, socket) in [
        ("nbd-export", &serve[..], at("s")),
        ("proxy-client", &daemon[..], at("control")),
    ] {
        for signal in [Signal::SIGTERM, Signal::SIGHUP] {
            let mut running = program::start(program, arguments, Stdio::null());
            let deadline = Instant::now() + Duration::from_secs(60);
            while UnixStream::connect(&socket).is_err() {
                assert!(running.is_alive() && Instant::now() < deadline, "{program}");
                thread::sleep(Duration::from_millis(10));
            }
            running.close_stderr();
            running.signal(signal);
            assert_eq!(running.wait().status.code(), Some(0), "{program} after {signal}");
        }
    }
}

/// What waits for a server that says nothing, or for a pipe that nobody writes to, waits no longer than the operator does.
#[test]
fn a_job_that_waits_for_others_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let _silent = UnixListener::bind(at("s")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let uris = ["a", "b"].map(|name| format!("nbd+unix:///{name}?socket={}", at("s")));
    let (manifest, target) = (at("set.json"), at("target"));
    for job in [
        &["backup", &uris[0], &uris[1], "--output", &manifest][..],
        &["restore", &at("pipe"), "--output", &target],
    ] {
        let arguments = [&["--error-format=json"], job].concat();
        let mut running = program::start("proxy-client", &arguments, Stdio::null());
        running.wait_until_it_hears(Signal::SIGTERM);
        // Into what makes it wait.
        thread::sleep(Duration::from_millis(200));
        let signalled = Instant::now();
        running.signal(Signal::SIGTERM);
        let error = program::error_object(&running.wait());
        assert_eq!(error["kind"], "interrupted", "{job:?}");
        assert!(signalled.elapsed() < Duration::from_secs(60), "{job:?}");
    }
    assert!(!dir.path().join("set.json").exists() && !dir.path().join("target").exists());
}
