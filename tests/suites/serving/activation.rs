//! Sockets that a service manager passes.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::disk::run;
use tests::needs;
use tests::program::built;

use super::{Ground, failure, is_content};

/// systemd-socket-activate, and what it becomes when somebody connects; killed when dropped.
struct Activated(Child);

impl Activated {
    fn new(ground: &Ground, listen: &[&str], arguments: &[&str]) -> Self {
        let listen = listen.iter().flat_map(|address| ["-l", address]);
        let child = Command::new("systemd-socket-activate")
            .args(listen)
            .arg(built("nbd-export"))
            .args(["serve", &ground.control()])
            .args(arguments)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Ends it by SIGTERM.
    fn terminate(&mut self) {
        kill(
            Pid::from_raw(i32::try_from(self.0.id()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn libnbd_activates_an_agent() {
    needs!("nbdsh", "nbdcopy");
    let ground = Ground::new();
    let (volume, control) = (ground.volume(), ground.control());
    let told = ground.nbdsh(&format!(
        "h.connect_systemd_socket_activation([program, 'serve', '{control}', '{volume}'])\n\
         print(h.get_size(), h.pread(4, 251).hex())\n\
         h.shutdown()"
    ));
    let last = told.lines().last().unwrap();
    assert_eq!(last, "4194304 01010303", "{told}");

    let program = built("nbd-export");
    let command = [
        "--",
        "[",
        program.to_str().unwrap(),
        "serve",
        &control,
        &volume,
        "]",
    ];
    run("nbdcopy", &[&command[..], &[&ground.path("copy")]].concat());
    assert!(is_content(&ground.path("copy")));
}

#[test]
fn unix_and_tcp_sockets_are_served_side_by_side() {
    needs!("systemd-socket-activate", "nbdinfo", "nbdcopy");
    let ground = Ground::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (socket, tcp) = (ground.path("s"), format!("127.0.0.1:{port}"));
    std::fs::write(ground.path("live"), [0; 1 << 20]).unwrap();
    let origin = format!("live={}", ground.path("live"));
    let copy_area = format!("{},size=4M", ground.path("copy"));
    let mut agent = Activated::new(
        &ground,
        &[&socket, &tcp],
        &["--origin", &origin, "--copy-area", &copy_area, &ground.volume()],
    );
    until("systemd-socket-activate listens", || {
        UnixStream::connect(&socket).is_ok() && TcpStream::connect(&tcp).is_ok()
    });
    run("nbdcopy", &[&format!("nbd://{tcp}/v"), &ground.path("by-tcp")]);
    run(
        "nbdcopy",
        &[&format!("nbd+unix:///v?socket={socket}"), &ground.path("by-unix")],
    );
    assert!(is_content(&ground.path("by-tcp")) && is_content(&ground.path("by-unix")));
    let listed = |uri: &str| run("nbdinfo", &["--list", uri]).contains("\"live\"");
    assert!(listed(&format!("nbd+unix:///?socket={socket}")));
    assert!(
        !listed(&format!("nbd://{tcp}")),
        "writable exports stay off TCP that was passed"
    );
    agent.terminate();
    assert!(
        std::path::Path::new(&socket).exists(),
        "the file of a socket that we did not bind is not ours to remove"
    );
}

#[test]
fn what_cannot_be_listened_on_is_refused_by_its_number() {
    needs!("systemd-socket-activate");
    let ground = Ground::new();
    let command = "exec \"$NBD_EXPORT\" serve --control=control v=volume";
    for (given, number, why) in [
        ("LISTEN_FDS=1 3</dev/null", 3, "is no socket"),
        ("LISTEN_FDS=1 3<volume", 3, "is no socket"),
        ("LISTEN_FDS=1 3<&-", 3, "Bad file descriptor"),
        ("LISTEN_FDS=many", 0, "LISTEN_FDS"),
        ("LISTEN_FDS=99999999999", 0, "LISTEN_FDS"),
    ] {
        let (variable, redirection) = given.split_once(' ').unwrap_or((given, ""));
        let output = ground.sh(&format!(
            "export LISTEN_PID=$$ {variable}; {command} {redirection}"
        ));
        let told = failure(&output, 1);
        assert!(told.contains(why), "{given}: {told}");
        assert!(
            number == 0 || told.contains(&format!("descriptor {number}")),
            "{told}"
        );
        assert!(output.stdout.is_empty(), "not READY");
    }
    // A datagram socket, and a connection instead of a listener.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for (mode, why) in [
        ("--datagram", "is no stream socket"),
        ("--accept", "does not listen"),
    ] {
        let script = format!(
            "systemd-socket-activate {mode} -l 127.0.0.1:{port} \"$NBD_EXPORT\" serve --control=control v=volume \
             2>told & pid=$!\n\
             for n in 1 2 3 4 5 6 7 8 9; do sleep 0.2; python3 -c \"import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_{kind}); s.connect(('127.0.0.1', {port})); s.send(b'x')\" \
             2>/dev/null; grep -q 'descriptor 3' told && break; done\n\
             kill $pid 2>/dev/null; wait $pid; cat told >&2; exit 1",
            kind = if mode == "--accept" { "STREAM" } else { "DGRAM" }
        );
        let told = failure(&ground.sh(&script), 1);
        assert!(told.contains(why), "{mode}: {told}");
    }
}

#[test]
fn sockets_of_another_process_are_none_of_ours() {
    let ground = Ground::new();
    let output = ground.sh(
        "export LISTEN_PID=1 LISTEN_FDS=1; \"$NBD_EXPORT\" serve --control=control --socket s v=volume 3</dev/null \
         >told & pid=$!; until grep -q READY told || ! kill -0 $pid; do sleep 0.05; done; kill $pid; wait $pid",
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn other_listeners_beside_passed_ones_are_a_usage_error() {
    needs!("nbdsh");
    let ground = Ground::new();
    let told = ground.nbdsh(&format!(
        "try:\n    h.connect_systemd_socket_activation([program, 'serve', '--socket', 's', '{}'])\n\
         except nbd.Error as error:\n    print('refused')",
        ground.volume()
    ));
    assert_eq!(told.trim(), "refused");
    assert!(!std::path::Path::new(&ground.path("s")).exists());
}
