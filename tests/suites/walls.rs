//! The walls between rooms that the compiler does not keep.

use std::fs;
use std::path::{Path, PathBuf};

/// Every source file in a room.
fn sources(room: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(room).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The NBD codec knows no socket, file, clock, thread or runtime, and none of its neighbours.
#[test]
fn the_codec_is_sans_io() {
    let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nbd-export/src/proto");
    let files = sources(&room);
    assert!(files.len() > 20, "the room has moved");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for wall in [
            "std::net",
            "std::fs",
            "std::time",
            "std::thread",
            "std::os",
            "std::env",
            "std::process",
            "tokio",
            "volmap::",
            "nix::",
            "libc::",
        ] {
            assert!(!text.contains(wall), "{} knows {wall}", file.display());
        }
        for (at, _) in text.match_indices("crate::") {
            let rest = &text[at..];
            assert!(
                rest.starts_with("crate::proto::"),
                "{} knows a neighbour: {}",
                file.display(),
                rest.lines().next().unwrap_or_default()
            );
        }
    }
}
