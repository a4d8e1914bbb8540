//! Our client before nbdkit and its filters that make trouble: right bytes, or a clear failure that leaves nothing. nbdkit 1.32 aborts
//! when a client leaves after an error with replies under way, so each attempt has a server of its own.

use std::io::Write;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::disk::{Scratch, scratch};
use tests::peer::Peer;
use tests::program::{Running, error_object, start};
use tests::{digest, image, needs, volume};

/// The bytes that nobody could read, as a backup's report lists them.
fn unreadable(report: &[u8]) -> Vec<Range<usize>> {
    let report: serde_json::Value = serde_json::from_slice(report).unwrap();
    let listed: Vec<(usize, usize)> = serde_json::from_value(report["unreadable"]["listed"].clone()).unwrap();
    assert!(!listed.is_empty(), "{report}");
    listed.into_iter().map(|(start, end)| start..end).collect()
}

/// A volume, and places for what is made of it.
struct Job {
    directory: Scratch,
    volume: PathBuf,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Backup,
    Copy,
}

const VERBS: [Verb; 2] = [Verb::Backup, Verb::Copy];

impl Job {
    fn new() -> Self {
        let directory = scratch();
        let volume = directory.path().join("volume");
        volume::motley(&volume);
        Self { directory, volume }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, verb: Verb, uri: &str) -> Running {
        let output = self.path("output");
        let output = output.to_str().unwrap();
        let json = ["--error-format", "json"];
        let arguments = match verb {
            Verb::Backup => ["backup", uri, "--output", output, "--json"].to_vec(),
            Verb::Copy => ["copy", uri, output].to_vec(),
        };
        start("proxy-client", &[&json[..], &arguments].concat(), Stdio::null())
    }

    /// Whether it succeeded: with the right bytes; if not, with an error of one of these kinds, and nothing left, or an image
    /// that is right but for what it says is missing.
    fn ends(&self, verb: Verb, running: Running, kinds: &[&str]) -> bool {
        let (output, run) = (self.path("output"), running.wait());
        if !run.status.success() {
            let error = error_object(&run);
            let kind = error["kind"].as_str().unwrap();
            assert!(kinds.contains(&kind), "{verb:?}: {error}");
            if kind == "damaged" {
                image::assert_holds_but(&output, &self.volume, &unreadable(&run.stdout));
                std::fs::remove_file(output).unwrap();
            } else {
                image::assert_nothing_left(&output);
            }
            return false;
        }
        self.assert_right(verb, &output);
        std::fs::remove_file(output).unwrap();
        true
    }

    fn assert_right(&self, verb: Verb, output: &Path) {
        match verb {
            Verb::Backup => image::assert_holds(output, &self.volume),
            Verb::Copy => assert_eq!(digest::of_file(output), digest::of_file(&self.volume)),
        }
    }

    fn serve(&self, options: &[&str], parameters: &[&str]) -> Peer {
        Peer::nbdkit_file(options, &self.volume, parameters)
    }

    /// Both verbs succeed with such a server.
    fn assert_right_through(&self, options: &[&str], parameters: &[&str]) {
        for verb in VERBS {
            let peer = self.serve(options, parameters);
            let running = self.start(verb, &peer.uri_text(""));
            assert!(self.ends(verb, running, &[]), "{options:?}");
        }
    }
}

#[test]
fn slow_and_poor_servers_are_only_slow_and_poor() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    for (options, parameters) in [
        (&["--filter=rate"][..], &["rate=400M"][..]),
        (&["--filter=delay"], &["rdelay=20ms", "delay-open=100ms"]),
        (&["--filter=noextents"], &[]),
        (&["--filter=multi-conn"], &["multi-conn-mode=disable"]),
        (&["--filter=noparallel"], &["serialize=all-requests"]),
        (
            &["--filter=blocksize-policy"],
            &[
                "blocksize-error-policy=error",
                "blocksize-minimum=4096",
                "blocksize-preferred=65536",
                "blocksize-maximum=1M",
            ],
        ),
        (&["--no-sr"], &[]),
        (&["--mask-handshake=0"], &[]),
        (&["--mask-handshake=1"], &[]),
        (&["--mask-handshake=2"], &[]),
        (&["--threads=1"], &[]),
    ] {
        job.assert_right_through(options, parameters);
    }
}

/// Some of everything fails: reads must not become zeroes, and failing to tell holes costs only the holes.
#[test]
fn errors_here_and_there() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    for parameters in [
        &["error-pread=EIO", "error-pread-rate=3%"][..],
        &["error-pread=ENOMEM", "error-pread-rate=50%"],
        &["error-extents=EIO", "error-extents-rate=50%"],
    ] {
        for verb in VERBS {
            for _ in 0..3 {
                let peer = job.serve(&["--filter=error"], parameters);
                let running = job.start(verb, &peer.uri_text(""));
                let right = job.ends(verb, running, &["host-refused", "host-lost", "damaged"]);
                assert!(
                    right || !parameters[0].contains("extents"),
                    "holes are not needed"
                );
            }
        }
    }
}

/// The server stands still in the middle, and goes on.
#[test]
fn a_pause_in_the_middle() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    for verb in VERBS {
        let control = job.path(&format!("pause-{verb:?}"));
        let parameter = format!("pause-control={}", control.display());
        let peer = job.serve(
            &["--filter=pause", "--filter=delay"],
            &[&parameter, "rdelay=20ms"],
        );
        let running = job.start(verb, &peer.uri_text(""));
        sleep(Duration::from_millis(60));
        let mut control = UnixStream::connect(control).unwrap();
        control.write_all(b"p").unwrap();
        sleep(Duration::from_millis(500));
        control.write_all(b"r").unwrap();
        assert!(job.ends(verb, running, &[]));
    }
}

/// The server ends by itself: when the first client leaves, and while it is read.
#[test]
fn servers_that_end_by_themselves() {
    needs!("nbdkit", "zstd");
    let job = Job::new();
    for verb in VERBS {
        let peer = job.serve(&["--filter=exitlast"], &[]);
        let running = job.start(verb, &peer.uri_text(""));
        job.ends(verb, running, &["host-lost"]);

        let trigger = job.path(&format!("trigger-{verb:?}"));
        let parameter = format!("exit-when-file-created={}", trigger.display());
        let peer = job.serve(
            &["--filter=exitwhen", "--filter=delay"],
            &[&parameter, "rdelay=100ms"],
        );
        let running = job.start(verb, &peer.uri_text(""));
        sleep(Duration::from_millis(150));
        std::fs::write(trigger, "").unwrap();
        job.ends(verb, running, &["host-lost", "frozen-image-gone"]);
    }
}

/// The largest size there can be: nothing is allocated for it, and the first read that fails ends the job.
#[test]
fn eight_exbibytes_that_cannot_be_read() {
    needs!("nbdkit");
    let job = Job::new();
    for verb in VERBS {
        let peer = Peer::nbdkit(&[
            "--exit-with-parent",
            "eval",
            "get_size=echo 9223372036854775807",
            "pread=echo EIO no >&2; exit 1",
        ]);
        let begun = Instant::now();
        let running = job.start(verb, &peer.uri_text(""));
        assert!(!job.ends(verb, running, &["host-cannot-read", "host-refused", "io"]));
        assert!(begun.elapsed() < Duration::from_secs(300));
    }
}

/// A map that contradicts itself is nbdkit's own error; one that ends early is asked for again.
#[test]
fn extents_of_a_script() {
    needs!("nbdkit", "zstd");
    let mut job = Job::new();
    // Each call is a process.
    job.volume = job.path("small");
    volume::dense(&job.volume, 64 << 10);
    let volume = job.volume.to_str().unwrap();
    let size = format!("get_size=stat -c %s {volume}");
    let read = format!("pread=dd if={volume} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none");
    for extents in [
        "extents=echo $4 $3",
        "extents=echo $4 8192",
        "extents=echo 0 1 hole,zero; echo 5 1",
        "extents=echo EIO no >&2; exit 1",
    ] {
        for verb in VERBS {
            let peer = Peer::nbdkit(&[
                "--exit-with-parent",
                "eval",
                &size,
                &read,
                "can_extents=exit 0",
                extents,
            ]);
            let running = job.start(verb, &peer.uri_text(""));
            assert!(job.ends(verb, running, &[]), "{extents}");
        }
    }
}
