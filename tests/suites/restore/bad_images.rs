//! Images that were cut, changed or continued: noticed by both verbs, from files and from pipes.

use tests::{needs, program};

use super::*;

/// A backup and what can become of its image.
struct Tampered {
    backup: Backup,
    bytes: Vec<u8>,
}

impl Tampered {
    fn new() -> Self {
        let backup = Backup::of(|path| volume::sparse(path, 4 * MIB, &[0..MIB, 2 * MIB..3 * MIB + 9]));
        let bytes = std::fs::read(&backup.image).unwrap();
        Self { backup, bytes }
    }

    /// Ends of frames, the end of the image among them.
    fn ends(&self) -> Vec<usize> {
        let mut ends = image::frame_ends(&self.bytes);
        ends.push(self.bytes.len());
        assert!(
            ends.len() >= 6,
            "header, data, zeroes, records, END and table: {ends:?}"
        );
        ends
    }

    /// Both verbs must refuse these bytes with 6, from a file and from stdin, and a new target must not appear.
    fn assert_noticed(&self, bytes: &[u8], what: &str) {
        let bad = self.backup.path("bad-image");
        std::fs::write(&bad, bytes).unwrap();
        let (path, target) = (bad.to_str().unwrap(), self.backup.path("restored"));
        for image in [path, "-"] {
            let stdin = || File::open(&bad).unwrap();
            let verify = ["--error-format", "json", "verify", image];
            for output in [
                program::run_fed("proxy-client", &verify, stdin()),
                restore_from(image, stdin(), &target, &[]),
            ] {
                assert_eq!(
                    output.status.code(),
                    Some(6),
                    "{what}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                let kind = program::error_object(&output)["kind"].clone();
                assert!(
                    kind == "image-bad" || kind == "image-unsupported",
                    "{what}: {kind}"
                );
            }
            image::assert_nothing_left(&target);
        }
    }
}

#[test]
fn cut_between_frames() {
    needs!("nbdkit");
    let tampered = Tampered::new();
    let ends = tampered.ends();
    for end in [0].into_iter().chain(ends[..ends.len() - 1].iter().copied()) {
        tampered.assert_noticed(&tampered.bytes[..end], &format!("cut at {end} of {ends:?}"));
    }
}

#[test]
fn cut_inside_frames() {
    needs!("nbdkit");
    let tampered = Tampered::new();
    let mut start = 0;
    for end in tampered.ends() {
        for cut in [start + 1, end - 1] {
            tampered.assert_noticed(
                &tampered.bytes[..cut],
                &format!("cut at {cut}, in {start}..{end}"),
            );
        }
        start = end;
    }
}

#[test]
fn a_bit_is_flipped_in_each_frame() {
    needs!("nbdkit");
    let tampered = Tampered::new();
    let mut start = 0;
    for end in tampered.ends() {
        for at in [start + 2, start + (end - start) / 2, end - 1] {
            let mut bytes = tampered.bytes.clone();
            bytes[at] ^= 0x10;
            tampered.assert_noticed(&bytes, &format!("flipped at {at}, in {start}..{end}"));
        }
        start = end;
    }
}

#[test]
fn something_follows() {
    needs!("nbdkit");
    let tampered = Tampered::new();
    for more in [&b"\0"[..], &tampered.bytes, &tampered.bytes[..tampered.ends()[0]]] {
        tampered.assert_noticed(&[&tampered.bytes, more].concat(), "something follows");
    }
}

#[test]
fn what_is_no_image() {
    needs!("nbdkit", "zstd");
    let tampered = Tampered::new();
    tampered.assert_noticed(b"", "empty");
    tampered.assert_noticed(&volume::noise(5, 100_000), "noise");
    let ordinary = tampered.backup.path("ordinary.zst");
    let (volume, to) = (
        tampered.backup.volume.to_str().unwrap(),
        ordinary.to_str().unwrap(),
    );
    disk::run("zstd", &["-q", volume, "-o", to]);
    tampered.assert_noticed(&std::fs::read(&ordinary).unwrap(), "an ordinary zstd file");
}

/// Frames of the right kinds in the wrong order.
#[test]
fn two_frames_change_places() {
    needs!("nbdkit");
    let tampered = Tampered::new();
    let ends = tampered.ends();
    for n in 0..ends.len() - 2 {
        let start = if n == 0 { 0 } else { ends[n - 1] };
        let (first, second) = (
            &tampered.bytes[start..ends[n]],
            &tampered.bytes[ends[n]..ends[n + 1]],
        );
        let swapped = [
            &tampered.bytes[..start],
            second,
            first,
            &tampered.bytes[ends[n + 1]..],
        ]
        .concat();
        tampered.assert_noticed(&swapped, &format!("frames {n} and the next swapped"));
    }
}

/// An existing target that a bad image was restored to says that it must not be used.
#[test]
fn an_existing_target_is_called_incomplete() {
    needs!("nbdkit");
    let tampered = Tampered::new();
    let mut bytes = tampered.bytes.clone();
    bytes[tampered.ends()[1] - 20] ^= 1;
    let bad = tampered.backup.path("bad-image");
    std::fs::write(&bad, bytes).unwrap();
    let target = tampered.backup.path("old");
    volume::full_of_old_data(&target, 9);
    let error = assert_failed(
        &restore_from(bad.to_str().unwrap(), Stdio::null(), &target, &["--force"]),
        6,
        "image-bad",
    );
    assert!(
        error["message"].as_str().unwrap().contains("incomplete"),
        "{error}"
    );

    // An image that was cut is found out before the target is touched.
    std::fs::write(&bad, &tampered.bytes[..tampered.bytes.len() - 1]).unwrap();
    volume::full_of_old_data(&target, 9);
    assert_failed(
        &restore_from(bad.to_str().unwrap(), Stdio::null(), &target, &["--force"]),
        6,
        "image-bad",
    );
    assert_eq!(std::fs::read(&target).unwrap(), [volume::OLD; 9]);
}
