//! Servers that fail in the middle of a backup: the right bytes, or a clear failure that leaves nothing behind.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use tests::cutting_proxy::{Cut, CuttingProxy};
use tests::disk::Scratch;
use tests::peer::Peer;
use tests::rust_nbd::RustNbd;
use tests::{disk, image, needs, program, volume};

/// A volume, and where its image goes.
struct Job {
    _directory: Scratch,
    volume: PathBuf,
    image: PathBuf,
}

impl Job {
    fn new() -> Self {
        let directory = disk::scratch();
        let volume = directory.path().join("volume");
        volume::motley(&volume);
        Self {
            image: directory.path().join("image.vbi.zst"),
            _directory: directory,
            volume,
        }
    }

    fn arguments(&self, uri: &str) -> Vec<String> {
        let output = self.image.to_str().unwrap();
        ["--error-format", "json", "backup", uri, "--output", output]
            .map(String::from)
            .to_vec()
    }

    fn run(&self, uri: &str) -> Output {
        self.start(uri).wait()
    }

    fn start(&self, uri: &str) -> program::Running {
        self.start_with(uri, &[])
    }

    fn start_with(&self, uri: &str, more: &[&str]) -> program::Running {
        let mut arguments = self.arguments(uri);
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        program::start("proxy-client", &arguments, std::process::Stdio::null())
    }

    /// It failed with 1 and an error of this kind, and left nothing.
    fn assert_failed(&self, output: &Output, kind: &str) {
        let error = program::error_object(output);
        assert_eq!(
            (output.status.code(), &error["kind"]),
            (Some(1), &kind.into()),
            "{error}"
        );
        image::assert_nothing_left(&self.image);
    }

    fn partial(&self) -> PathBuf {
        self.image.with_extension("zst.partial")
    }
}

#[test]
fn every_read_fails() {
    needs!("nbdkit");
    let job = Job::new();
    for (errno, kind) in [
        ("EIO", "host-cannot-read"),
        ("EINVAL", "host-refused"),
        ("ENOMEM", "host-refused"),
    ] {
        let error = format!("error-pread={errno}");
        let parameters = [error.as_str(), "error-pread-rate=100%"];
        let peer = Peer::nbdkit_file(&["--filter=error"], &job.volume, &parameters);
        job.assert_failed(&job.run(&peer.uri_text("")), kind);
    }
}

/// ESHUTDOWN from a server that publishes no frozen image still says that what was read is gone.
#[test]
fn the_server_says_that_the_export_has_ended() {
    needs!("nbdkit");
    let job = Job::new();
    let parameters = ["error-pread=ESHUTDOWN", "error-pread-rate=100%"];
    let peer = Peer::nbdkit_file(&["--filter=error"], &job.volume, &parameters);
    let output = job.run(&peer.uri_text(""));
    assert_eq!(program::error_object(&output)["kind"], "frozen-image-gone");
    assert_eq!(output.status.code(), Some(5));
    image::assert_nothing_left(&job.image);
}

#[test]
fn some_reads_fail() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    let parameters = ["error-pread=EIO", "error-pread-rate=5%"];
    for _ in 0..5 {
        // A new one each time: nbdkit 1.32 aborts when a client leaves after an error, with replies under way.
        let peer = Peer::nbdkit_file(&["--filter=error"], &job.volume, &parameters);
        let output = job.run(&peer.uri_text(""));
        if output.status.success() {
            image::assert_holds(&job.image, &job.volume);
        } else {
            // A block that could not be read in three tries, the last of them alone.
            assert_eq!(output.status.code(), Some(3));
            assert_eq!(program::error_object(&output)["kind"], "damaged");
            program::fails("proxy-client", 3, &["verify", job.image.to_str().unwrap()]);
        }
        std::fs::remove_file(&job.image).unwrap();
    }
}

/// A server that fails to tell its holes has none.
#[test]
fn no_map_is_told() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    let parameters = ["error-extents=EIO", "error-extents-rate=100%"];
    let peer = Peer::nbdkit_file(&["--filter=error"], &job.volume, &parameters);
    assert!(job.run(&peer.uri_text("")).status.success());
    image::assert_holds(&job.image, &job.volume);
}

#[test]
fn a_slow_server_is_waited_for() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    let peer = Peer::nbdkit_file(
        &["--filter=delay"],
        &job.volume,
        &["rdelay=50ms", "delay-extents=50ms"],
    );
    assert!(job.run(&peer.uri_text("")).status.success());
    image::assert_holds(&job.image, &job.volume);
}

/// A server that takes requests and never replies is lost as soon as it was waited for long enough.
#[test]
fn a_server_that_hangs_is_given_up() {
    needs!("nbdkit");
    let job = Job::new();
    let peer = Peer::nbdkit_file(&["--filter=delay"], &job.volume, &["rdelay=60"]);
    let begun = Instant::now();
    let more = ["--request-timeout", "300ms", "--reconnect", "1s"];
    let ended = job.start_with(&peer.uri_text(""), &more).wait();
    job.assert_failed(&ended, "host-lost");
    assert!(begun.elapsed() < Duration::from_secs(55), "{:?}", begun.elapsed());
}

#[test]
fn a_backup_that_takes_too_long_ends_at_its_deadline() {
    needs!("nbdkit");
    let job = Job::new();
    let peer = Peer::nbdkit_file(&["--filter=delay"], &job.volume, &["rdelay=60"]);
    let begun = Instant::now();
    let ended = job.start_with(&peer.uri_text(""), &["--timeout", "700ms"]).wait();
    job.assert_failed(&ended, "deadline-passed");
    assert!(begun.elapsed() < Duration::from_secs(55), "{:?}", begun.elapsed());
}

#[test]
fn the_server_is_killed_in_the_middle() {
    needs!("nbdkit");
    let job = Job::new();
    let mut peer = Peer::nbdkit_file(&["--filter=delay"], &job.volume, &["rdelay=30"]);
    let mut backup = job.start(&peer.uri_text(""));
    backup.wait_for(&job.partial());
    std::thread::sleep(Duration::from_millis(200));
    peer.kill();
    job.assert_failed(&backup.wait(), "host-lost");
}

#[test]
fn there_is_no_server() {
    let job = Job::new();
    let missing = job.volume.with_file_name("no-socket");
    let uri = format!("nbd+unix:///?socket={}", missing.display());
    job.assert_failed(&job.run(&uri), "host-lost");
}

#[test]
fn there_is_no_such_export() {
    needs!("qemu-nbd");
    let job = Job::new();
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", "-x", "volume", job.volume.to_str().unwrap()]);
    job.assert_failed(&job.run(&peer.uri_text("another")), "host-refused");
}

/// Greeting (18 bytes), then replies to options of 20 bytes and more: cuts at, before and behind each.
const CUTS: [usize; 16] = [0, 1, 8, 15, 17, 18, 19, 37, 38, 39, 57, 58, 70, 79, 99, 110];

#[test]
fn the_server_goes_away_in_the_handshake() {
    needs!("nbdkit");
    let job = Job::new();
    let peer = Peer::nbdkit_file(&[], &job.volume, &[]);
    // The contexts are listed on a connection of their own.
    for connection in 0..2 {
        for after in CUTS {
            let cut = Cut { connection, after };
            let proxy = CuttingProxy::new(peer.socket(), cut);
            let output = job.run(&proxy.uri(""));
            if connection == 0 && output.status.success() {
                assert!(after > 100, "{cut:?}: the list was whole already");
                std::fs::remove_file(&job.image).unwrap();
                continue;
            }
            job.assert_failed(&output, "host-lost");
            assert_eq!(
                proxy.connections(),
                connection + 1,
                "{cut:?}: nothing says that it is the same volume"
            );
        }
    }
}

#[test]
fn the_server_goes_away_in_the_middle_of_a_reply() {
    needs!("nbdkit");
    let job = Job::new();
    let peer = Peer::nbdkit_file(&[], &job.volume, &[]);
    for after in [200, 260, 400, 4096, 70_000, 1 << 20, 5 << 20] {
        let proxy = CuttingProxy::new(peer.socket(), Cut { connection: 1, after });
        job.assert_failed(&job.run(&proxy.uri("")), "host-lost");
    }
}

/// Simple replies have no end of their own: a cut one must not be taken for a whole one.
#[test]
fn a_file_that_shrinks_under_the_nbd_crate_is_no_image() {
    let job = Job::new();
    let server = RustNbd::serve_as(&job.volume, 64 << 20);
    job.assert_failed(&job.run(&server.uri()), "host-lost");
}
