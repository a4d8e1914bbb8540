//! Bytes that nobody can read: zeroes stand in for them, and everybody says so.

use std::path::Path;
use std::process::Output;

use tests::disk::{self, Scratch};
use tests::peer::Peer;
use tests::volume::noise;
use tests::{digest, image, needs, program};

const KIB: usize = 1 << 10;
const SIZE: usize = 4096 * KIB;

/// A server whose disk gives errors for reads that touch one of these ranges of bytes.
fn server(volume: &Path, bad: &[(usize, usize)]) -> Peer {
    let tests: Vec<String> = bad
        .iter()
        .map(|(start, end)| format!("{{ [ $4 -lt {end} ] && [ $(( $4 + $3 )) -gt {start} ]; }}"))
        .collect();
    let fails = format!(
        "if {}; then echo EIO bad sector >&2; exit 1; fi",
        tests.join(" || ")
    );
    let volume = volume.to_str().unwrap();
    Peer::nbdkit(&[
        "-r",
        "eval",
        &format!("get_size=echo {SIZE}"),
        &format!(
            "pread={fails}; dd if={volume} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none"
        ),
    ])
}

struct Job {
    directory: Scratch,
    bytes: Vec<u8>,
}

impl Job {
    fn new() -> Self {
        let directory = disk::scratch();
        let bytes = noise(5, SIZE);
        std::fs::write(directory.path().join("volume"), &bytes).unwrap();
        Self { directory, bytes }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn backup(&self, bad: &[(usize, usize)]) -> Output {
        let server = server(Path::new(&self.path("volume")), bad);
        let uri = server.uri_text("");
        let output = self.path("image");
        program::run(
            "proxy-client",
            &[
                "--error-format",
                "json",
                "backup",
                &uri,
                "--output",
                &output,
                "--json",
            ],
        )
    }
}

#[test]
fn the_image_says_what_is_missing_and_the_rest_is_right() {
    needs!("nbdkit", "zstd");
    let mut job = Job::new();
    // A sector, and a stretch from the middle of a block to the middle of another.
    let output = job.backup(&[(100 * KIB + 512, 100 * KIB + 1024), (2046 * KIB, 2066 * KIB)]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(program::error_object(&output)["kind"], "damaged");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lost = [(100 * KIB, 104 * KIB), (2044 * KIB, 2068 * KIB)];
    let listed: Vec<_> = lost
        .iter()
        .map(|(start, end)| serde_json::json!([start, end]))
        .collect();
    assert_eq!(
        report["unreadable"]["listed"],
        serde_json::json!(listed),
        "{report}"
    );
    assert_eq!(report["unreadable"]["bytes"], 28 * KIB);

    let image = job.path("image");
    program::fails("proxy-client", 3, &["verify", &image]);
    let restored = job.path("restored");
    program::fails("proxy-client", 3, &["restore", &image, "--output", &restored]);
    for (start, end) in lost {
        job.bytes[start..end].fill(0);
    }
    let expected = blake3::hash(&job.bytes);
    assert_eq!(digest::of_file(Path::new(&restored)), expected);
    let by_zstd = digest::of_command(std::process::Command::new("zstd").args(["-dcq", &image]));
    assert_eq!(by_zstd, expected);
}

#[test]
fn a_disk_of_which_nothing_can_be_read_makes_no_image() {
    needs!("nbdkit");
    let job = Job::new();
    let output = job.backup(&[(0, SIZE)]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(program::error_object(&output)["kind"], "host-cannot-read");
    image::assert_nothing_left(Path::new(&job.path("image")));
}
