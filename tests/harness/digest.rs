//! Digests of files and devices, for comparing whole volumes.

use std::fs::File;
use std::path::Path;

/// BLAKE3 of a file's bytes.
pub fn of_file(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

/// BLAKE3 of what a command writes to stdout; the command must succeed.
pub fn of_command(command: &mut std::process::Command) -> blake3::Hash {
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(child.stdout.take().unwrap()).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?} failed");
    hasher.finalize()
}
