//! An agent says that it is ready when it is, and not before.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::program::built;

use super::{Ground, failure};

#[test]
fn the_descriptor_is_written_to_and_closed() {
    let ground = Ground::new();
    // `cat` ends when nobody has the pipe open any more: then the agent still runs.
    let output = ground.sh(
        "mkfifo ready; \"$NBD_EXPORT\" serve --control=control --socket s --ready-fd 9 v=volume 9>ready & pid=$!\n\
         cat ready | od -c; kill -0 $pid && [ -S s ] && kill $pid && wait $pid",
    );
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("0000000  \\n\n"), "{told}");
}

#[test]
fn an_agent_that_cannot_serve_is_never_ready() {
    let ground = Ground::new();
    for volumes in [
        "v=volume w=missing",
        "v=volume --tag v=missing/tag",
        // Somebody writes to it, so it cannot be frozen.
        "--freeze=quiesce v=volume 8<>volume",
    ] {
        let output = ground.sh(&format!(
            "\"$NBD_EXPORT\" serve --control=control --socket s --ready-fd 9 {volumes} 9>ready"
        ));
        failure(&output, 1);
        assert_eq!(fs::read(ground.path("ready")).unwrap(), b"", "{volumes}");
        assert!(output.stdout.is_empty(), "{volumes}");
    }
}

#[test]
fn a_descriptor_that_is_not_there_is_a_usage_error() {
    let ground = Ground::new();
    for (number, redirection) in [
        ("0", ""),
        ("1", ""),
        ("2", ""),
        ("9", "9<volume"),
        ("9", "9>&-"),
        ("-1", ""),
        ("many", ""),
        ("99999999999", ""),
    ] {
        let output = ground.sh(&format!(
            "exec \"$NBD_EXPORT\" serve --control=control --socket s --ready-fd={number} v=volume {redirection}"
        ));
        failure(&output, 2);
        assert!(
            !std::path::Path::new(&ground.path("s")).exists(),
            "before anything is done"
        );
    }
}

#[test]
fn a_service_manager_hears_of_the_beginning_and_of_the_end() {
    let ground = Ground::new();
    let manager = UnixDatagram::bind(ground.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    let mut agent = Command::new(built("nbd-export"))
        .args([
            "serve",
            &ground.control(),
            &ground.volume(),
            "--socket",
            &ground.path("s"),
        ])
        .env("NOTIFY_SOCKET", ground.path("notify"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(heard(), "READY=1");
    kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(heard(), "STOPPING=1");
    assert!(agent.wait().unwrap().success());
}
