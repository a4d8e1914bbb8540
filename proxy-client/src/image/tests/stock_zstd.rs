//! A full image is a zstd file: the distribution's zstd restores it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::zeroes::without_data;
use super::{encode, small, stretch};
use crate::image::{Kind, LEAF};

const NEEDED: &str = "zstd is installed (tests/run sees to that)";

/// What `zstd` with these arguments makes of a file.
fn zstd(arguments: &[&str], image: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let output = Command::new("zstd")
        .args(arguments)
        .stdin(file.reopen().unwrap())
        .stderr(Stdio::inherit())
        .output()
        .expect(NEEDED);
    assert!(output.status.success());
    output.stdout
}

#[test]
fn stock_zstd_restores_an_image() {
    let with_holes = vec![
        stretch(3 * LEAF + 1, Kind::Data, 3),
        stretch(40 << 20, Kind::Hole, 0),
        stretch(7 << 20, Kind::Data, 5),
        stretch((5 << 20) + 11, Kind::Unreadable, 0),
    ];
    for stretches in [vec![], small(), with_holes] {
        let (image, plain, _) = encode(&stretches);
        assert!(zstd(&["-dc"], &image) == plain);
        zstd(&["-t"], &image);
    }
}

/// The longest zero frame, and what is left over behind it.
#[test]
fn stock_zstd_restores_a_hole_of_more_than_a_gibibyte() {
    let size = (1 << 30) + (3 << 20) + LEAF + 9;
    let (image, _) = without_data(&[(size, Kind::Hole)]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    let mut child = Command::new("zstd")
        .arg("-dc")
        .stdin(file.reopen().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .expect(NEEDED);
    let mut stdout = child.stdout.take().unwrap();
    let (zeroes, mut buffer, mut length) = (vec![0; 1 << 20], vec![1; 1 << 20], 0);
    loop {
        let read = stdout.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        assert!(buffer[..read] == zeroes[..read]);
        length += read as u64;
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(length, size);
}
