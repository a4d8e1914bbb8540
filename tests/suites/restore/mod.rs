//! `restore` and `verify` through the command line: the right bytes, or a refusal, or a failure that nobody can take for a
//! success.

mod bad_images;
mod devices;
mod files;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tests::disk::Scratch;
use tests::{disk, image, program, volume};

const MIB: u64 = 1 << 20;

/// A volume and its image, in a directory.
struct Backup {
    directory: Scratch,
    volume: PathBuf,
    image: PathBuf,
}

impl Backup {
    /// Of [`volume::motley`]; needs nbdkit.
    fn new() -> Self {
        Self::of(volume::motley)
    }

    fn of(make: impl FnOnce(&Path)) -> Self {
        let directory = disk::scratch();
        let volume = directory.path().join("volume");
        make(&volume);
        Self {
            image: image::of(&volume),
            directory,
            volume,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn restore(&self, target: &Path, more: &[&str]) -> Output {
        restore_from(self.image.to_str().unwrap(), Stdio::null(), target, more)
    }

    /// The restore must fail with 1 and this kind.
    fn assert_refused(&self, target: &Path, more: &[&str], kind: &str) {
        assert_failed(&self.restore(target, more), 1, kind);
    }

    /// The restore must succeed and give the volume.
    fn assert_restored(&self, target: &Path, more: &[&str]) {
        let output = self.restore(target, more);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_begins_with(target, &self.volume);
    }
}

fn restore_from(image: &str, stdin: impl Into<Stdio>, target: &Path, more: &[&str]) -> Output {
    let target = target.to_str().unwrap();
    let arguments = ["--error-format", "json", "restore", image, "--output", target];
    program::run_fed("proxy-client", &[&arguments, more].concat(), stdin)
}

fn assert_failed(output: &Output, code: i32, kind: &str) -> Value {
    let error = program::error_object(output);
    assert_eq!(
        (output.status.code(), &error["kind"]),
        (Some(code), &kind.into()),
        "{error}"
    );
    error
}

/// The first bytes of `target` are those of `volume`.
fn assert_begins_with(target: &Path, volume: &Path) {
    let size = std::fs::metadata(volume).unwrap().len();
    let mut hasher = blake3::Hasher::new();
    let begin = std::io::Read::take(File::open(target).unwrap(), size);
    hasher.update_reader(begin).unwrap();
    assert_eq!(
        hasher.finalize(),
        tests::digest::of_file(volume),
        "{}",
        target.display()
    );
}
