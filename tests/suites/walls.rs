//! The walls between rooms that the compiler does not keep.

use std::fs;
use std::path::{Path, PathBuf};

/// What a room without I/O must not name.
const SANS_IO: &[&str] = &[
    "std::net",
    "std::fs",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::thread",
    "std::os",
    "std::env",
    "std::process",
    "tokio",
    "nix::",
    "libc::",
];

/// Every source file in a room but its tests, which may do as they like.
fn sources(room: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(room).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            found.push((path, code.to_owned()));
        }
    }
    found
}

fn room(path: &str, at_least: usize) -> Vec<(PathBuf, String)> {
    let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path));
    assert!(files.len() >= at_least, "{path} has moved");
    files
}

fn assert_free_of(files: &[(PathBuf, String)], walls: &[&str]) {
    for (file, code) in files {
        for wall in walls {
            assert!(!code.contains(wall), "{} knows {wall}", file.display());
        }
    }
}

/// The NBD codec knows no socket, file, clock, thread or runtime, and none of its neighbours.
#[test]
fn the_codec_is_sans_io() {
    let files = room("nbd-export/src/proto", 20);
    assert_free_of(&files, SANS_IO);
    assert_free_of(&files, &["volmap::"]);
    for (file, code) in files {
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at..];
            let line = rest.lines().next().unwrap_or_default();
            assert!(
                rest.starts_with("crate::proto::"),
                "{} knows a neighbour: {line}",
                file.display()
            );
        }
    }
}

/// The format of the image and the plan are pure.
#[test]
fn image_and_plan_are_sans_io() {
    assert_free_of(&room("proxy-client/src/image", 10), SANS_IO);
    assert_free_of(&room("proxy-client/src/plan", 4), SANS_IO);
}

/// The model of volumes has no async runtime.
#[test]
fn volmap_has_no_runtime() {
    assert_free_of(&room("volmap/src", 20), &["tokio", "async fn", ".await"]);
}

/// Unsafe code stands in one place.
#[test]
fn unsafe_code_stays_where_it_is_argued() {
    let mut files = room("volmap/src", 20);
    files.retain(|(file, _)| !file.components().any(|part| part.as_os_str() == "sys"));
    files.extend(room("nbd-export/src", 40));
    files.extend(room("proxy-client/src", 30));
    assert_free_of(&files, &["unsafe {", "unsafe fn", "unsafe impl"]);
}
