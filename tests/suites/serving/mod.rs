//! The life of an agent: how it is started, how it tells that it can serve, whom it serves, and how it ends.

mod activation;
mod from_a_file;
mod readiness;
mod shutdown;
mod single;
mod units;
mod writable;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tests::disk::{Scratch, scratch};
use tests::program::built;

const MIB: usize = 1 << 20;

/// A directory with a volume of 4 MiB that is no zeroes.
struct Ground {
    directory: Scratch,
}

impl Ground {
    fn new() -> Self {
        let directory = scratch();
        fs::write(directory.path().join("volume"), content()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// `v=VOLUME`
    fn volume(&self) -> String {
        format!("v={}", self.path("volume"))
    }

    fn control(&self) -> String {
        format!("--control={}", self.path("control"))
    }

    /// Runs a script of the shell in which `$NBD_EXPORT` is the program, to its end.
    fn sh(&self, script: &str) -> Output {
        let output = Command::new("timeout")
            .args(["60", "sh", "-c", script])
            .current_dir(self.directory.path())
            .env("NBD_EXPORT", built("nbd-export"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked at"), "{script}:\n{stderr}");
        output
    }

    /// Runs a script of nbdsh, with `h` a handle and `program` the path of ours.
    fn nbdsh(&self, script: &str) -> String {
        let program = format!("program = {:?}", built("nbd-export").to_str().unwrap());
        let output = Command::new("timeout")
            .args(["60", "nbdsh", "-c", &program, "-c", script])
            // The module belongs to Debian's Python, and nbdsh takes the first that it finds.
            .env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap()))
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !stderr.contains("panicked at"),
            "{script}:\n{stderr}"
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

fn content() -> Vec<u8> {
    (0..4 * MIB)
        .map(|at| u8::try_from(at % 251).unwrap() | 1)
        .collect()
}

/// What a program that had to fail left on stderr.
fn failure(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

fn is_content(path: &str) -> bool {
    fs::read(Path::new(path)).unwrap() == content()
}
