//! A full image is a zstd file: the distribution's zstd restores it.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{encode, small, stretch};
use crate::image::{Kind, LEAF};

/// What `zstd` with these arguments makes of a file; `None` where it is not installed.
fn zstd(arguments: &[&str], image: &[u8]) -> Option<Vec<u8>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let Ok(output) = Command::new("zstd")
        .args(arguments)
        .stdin(file.reopen().unwrap())
        .stderr(Stdio::inherit())
        .output()
    else {
        eprintln!("skipped: zstd is not installed");
        return None;
    };
    assert!(output.status.success());
    Some(output.stdout)
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
        let Some(restored) = zstd(&["-dc"], &image) else {
            return;
        };
        assert!(restored == plain);
        zstd(&["-t"], &image);
    }
}
