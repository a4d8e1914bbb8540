//! One client, at standard input and output.

use std::fs;
use std::io::{Read, Write};
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
