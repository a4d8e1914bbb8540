//! The real program against a server that keeps the protocol but for one message: always a clear error with the right exit code, in
//! bounded time and memory, and never an image.

mod drops;
mod handshake;
mod replies;

use std::time::{Duration, Instant};

use nbd_export::proto::HeaderStyle;
use nix::sys::resource::{UsageWho, getrusage};
use tests::evil_server::{EvilServer, Script};
use tests::{image, program, volume};

const MISBEHAVED: &str = "host-misbehaved";
const LOST: &str = "host-lost";
const REFUSED: &str = "host-refused";
const CANNOT_READ: &str = "host-cannot-read";
const INCOMPATIBLE: &str = "host-incompatible";

const SIZE: usize = 256 << 10;

/// What a program may take for 256 KiB, whatever it is told: its buffers, a reply of the longest list, and no more.
const MEMORY_MAX_KIB: i64 = 192 << 10;

fn bytes() -> Vec<u8> {
    volume::noise(7, SIZE)
}

/// Backs up from such a server, which must fail with an error of this kind and exit code 1, and leave nothing.
fn assert_fails(what: &str, kind: &str, script: Script) {
    assert_fails_of(bytes(), what, kind, script);
}

fn assert_fails_of(volume: Vec<u8>, what: &str, kind: &str, script: Script) {
    let server = EvilServer::start(volume, script);
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("image");
    let begun = Instant::now();
    let arguments = ["--error-format", "json", "backup", &server.uri(), "--output"];
    let run = program::run(
        "proxy-client",
        &[&arguments[..], &[output.to_str().unwrap()]].concat(),
    );
    let error = program::error_object(&run);
    assert_eq!(error["kind"], kind, "{what}: {error}");
    assert_eq!(run.status.code(), Some(1), "{what}: {error}");
    image::assert_nothing_left(&output);
    assert!(
        begun.elapsed() < Duration::from_secs(55),
        "{what} took {:?}",
        begun.elapsed()
    );
    let memory = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
    assert!(memory < MEMORY_MAX_KIB, "{what} took {memory} KiB");
}

/// Backs up from such a server, which must give the right image.
fn assert_backed_up(what: &str, script: Script) {
    let volume = bytes();
    let server = EvilServer::start(volume.clone(), script);
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("source"), directory.path().join("image"));
    std::fs::write(&source, volume).unwrap();
    program::backup(&[&server.uri(), "--output", output.to_str().unwrap()]);
    image::assert_holds(&output, &source);
    assert!(server.connections() > 0, "{what}");
}

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

/// The server is a good one until it is told otherwise: else nothing here proves anything.
#[test]
fn without_a_lie_it_is_a_good_server() {
    tests::needs!("zstd");
    for style in STYLES {
        assert_backed_up("honest", Script::honest(style));
    }
}

#[test]
fn one_byte_at_a_time_is_slow_and_right() {
    tests::needs!("zstd");
    for style in STYLES {
        assert_backed_up("byte by byte", Script::honest(style).in_pieces(1));
    }
}
