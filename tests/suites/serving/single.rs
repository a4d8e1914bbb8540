//! One client, at standard input and output.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};

use tests::program::built;
use tests::{needs, program};

use super::{Ground, failure};

#[test]
fn libnbd_runs_an_agent_of_its_own() {
    needs!("nbdsh");
    let ground = Ground::new();
    let volume = ground.volume();
    let told = ground.nbdsh(&format!(
        "h.connect_command([program, 'serve', '--single', '{volume}'])\n\
         print(h.get_size(), h.pread(4, 251).hex())\n\
         h.shutdown()"
    ));
    assert_eq!(told.trim(), "4194304 01010303");

    // Whoever can start an agent on a volume can write it.
    fs::write(ground.path("live"), [0; 1 << 20]).unwrap();
    let (live, copy) = (ground.path("live"), ground.path("area"));
    ground.nbdsh(&format!(
        "h.connect_command([program, 'serve', '--single', '--origin', 'live={live}', '--copy-area', '{copy},size=4M'])\n\
         h.pwrite(b'abc', 100, nbd.CMD_FLAG_FUA)\n\
         h.shutdown()"
    ));
    assert_eq!(&fs::read(&live).unwrap()[99..104], b"\0abc\0");
}

#[test]
fn two_pipes_carry_it_and_nothing_else() {
    let ground = Ground::new();
    let ready = ground.path("ready");
    let script = format!("exec \"$0\" \"$@\" --ready-fd 7 7>{ready}");
    let mut agent = Command::new("sh")
        .arg("-c")
        .arg(&script)
        .arg(built("nbd-export"))
        .args(["serve", "--single", &ground.volume()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (agent.stdin.take().unwrap(), agent.stdout.take().unwrap());
    let mut greeting = [0; 18];
    output.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    assert_eq!(fs::read(&ready).unwrap(), b"\n", "ready before the greeting");
    input.write_all(&[0, 0, 0, 3]).unwrap();
    drop(input);
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "no URI and no READY in the midst of the protocol");
    assert!(agent.wait().unwrap().success(), "it ends with its client");
}

#[test]
fn a_log_that_would_go_into_the_connection_goes_nowhere() {
    let ground = Ground::new();
    // A whole session's worth of log, from the start to a handshake that fails.
    let nonsense = [&[0, 0, 0, 3][..], &[0xff; 16]].concat();
    let agent = |stdin: Stdio, redirection: &str| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("exec \"$0\" \"$@\" {redirection}"))
            .arg(built("nbd-export"))
            .args(["serve", "--single", &ground.volume()])
            .env("RUST_LOG", "trace")
            .stdin(stdin);
        command
    };
    let is_greeting_alone = |told: &[u8]| {
        assert_eq!(told.len(), 18, "{}", String::from_utf8_lossy(told));
        assert_eq!(&told[..16], b"NBDMAGICIHAVEOPT");
    };

    // As inetd and systemd give it: one socket for all three.
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut running = agent(OwnedFd::from(server).into(), ">&0 2>&0").spawn().unwrap();
    client.write_all(&nonsense).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut told = Vec::new();
    client.read_to_end(&mut told).unwrap();
    is_greeting_alone(&told);
    assert!(running.wait().unwrap().success());

    let mut running = agent(Stdio::piped(), "2>&1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    running.stdin.take().unwrap().write_all(&nonsense).unwrap();
    let output = running.wait_with_output().unwrap();
    is_greeting_alone(&output.stdout);
    assert!(output.status.success());
}

#[test]
fn a_connection_from_afar_has_no_way_around_the_listeners() {
    let ground = Ground::new();
    fs::write(ground.path("live"), [0; 1 << 20]).unwrap();
    let live = format!("live={}", ground.path("live"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    for connection in [OwnedFd::from(server), datagrams.into()] {
        let output = Command::new(built("nbd-export"))
            .args(["serve", "--single", "--writable", &live])
            .stdin(connection.try_clone().unwrap())
            .stdout(connection)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(failure(&output, 2).contains("use --listen"));
    }
    let mut told = Vec::new();
    (&client).read_to_end(&mut told).unwrap();
    assert_eq!(told, b"", "not even a greeting");
}

#[test]
fn what_is_no_connection_is_a_usage_error() {
    let ground = Ground::new();
    let single = ["serve", "--single", &ground.volume()];
    let output = program::run_fed("nbd-export", &single, fs::File::open("/dev/null").unwrap());
    assert!(failure(&output, 2).contains("--single"));
    assert!(output.stdout.is_empty());
    for more in [["--socket", "s"], ["--listen", "127.0.0.1:0"]] {
        let output = program::run("nbd-export", &[&single[..], &more].concat());
        failure(&output, 2);
    }
}
