//! What is owed by a backup image, and what by a job that failed.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peer::Peer;
use crate::{digest, program};

/// The image holds exactly the bytes of `source`: for stock zstd, for `verify`, and for `restore`.
pub fn assert_holds(image: &Path, source: &Path) {
    let wanted = digest::of_file(source);
    let by_zstd = digest::of_command(Command::new("zstd").args(["-dcq", "--"]).arg(image));
    assert_eq!(by_zstd, wanted, "zstd -dc gives other bytes");
    let text = image.to_str().unwrap();
    program::proxy_client(&["verify", text]);
    let restored = image.with_extension("restored");
    program::proxy_client(&["restore", text, "--output", restored.to_str().unwrap()]);
    assert_eq!(
        digest::of_file(&restored),
        wanted,
        "the restore gives other bytes"
    );
    std::fs::remove_file(restored).unwrap();
}

/// The image holds the bytes of `source`, and zeroes in these ranges, of which it says that nobody could read them.
pub fn assert_holds_but(image: &Path, source: &Path, unreadable: &[Range<usize>]) {
    let mut wanted = std::fs::read(source).unwrap();
    for range in unreadable {
        wanted[range.clone()].fill(0);
    }
    let by_zstd = digest::of_command(Command::new("zstd").args(["-dcq", "--"]).arg(image));
    assert_eq!(by_zstd, blake3::hash(&wanted), "zstd -dc gives other bytes");
    program::fails("proxy-client", 3, &["verify", image.to_str().unwrap()]);
}

/// Backs `source` up through nbdkit, which tells its holes.
pub fn of(source: &Path) -> PathBuf {
    let peer = Peer::nbdkit_file(&[], source, &[]);
    let image = source.with_extension("vbi.zst");
    program::backup(&[&peer.uri_text(""), "--output", image.to_str().unwrap()]);
    image
}

/// Where each frame of an image ends, by its seek table; the table itself comes behind the last of them.
pub fn frame_ends(image: &[u8]) -> Vec<usize> {
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let count = number(image.len() - 9);
    let entries = image.len() - 9 - 8 * count;
    (0..count)
        .scan(0, |end, index| {
            *end += number(entries + 8 * index);
            Some(*end)
        })
        .collect()
}

/// Neither the output nor its `.partial` file is there.
pub fn assert_nothing_left(output: &Path) {
    let mut partial = output.as_os_str().to_owned();
    partial.push(".partial");
    for path in [output, Path::new(&partial)] {
        assert!(
            std::fs::symlink_metadata(path).is_err(),
            "{} is left behind",
            path.display()
        );
    }
}
