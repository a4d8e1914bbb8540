//! `copy`, and `restore` to servers, through the command line: right bytes, or a failure that nobody takes for a success.

mod faults;
mod files;
mod servers;
mod streams;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::disk::{self, Scratch, run};
use tests::{digest, program, volume};

const MIB: u64 = 1 << 20;

/// A source with data, holes and written zeroes, in a directory.
struct Site {
    directory: Scratch,
    source: PathBuf,
}

impl Site {
    /// Of [`volume::motley`].
    fn new() -> Self {
        Self::of(volume::motley)
    }

    fn of(make: impl FnOnce(&Path)) -> Self {
        let directory = disk::scratch();
        let source = directory.path().join("source");
        make(&source);
        Self { directory, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn source(&self) -> &str {
        self.source.to_str().unwrap()
    }

    fn size(&self) -> u64 {
        self.source.metadata().unwrap().len()
    }

    /// A file of old data for a server to give out.
    fn old(&self, name: &str, size: u64) -> String {
        volume::full_of_old_data(&self.path(name), size);
        self.text(name)
    }

    /// The file has the bytes of the source, and `more` of old data behind them.
    fn assert_copied(&self, path: &Path, more: u64) {
        assert_eq!(path.metadata().unwrap().len(), self.size() + more);
        let mut file = File::open(path).unwrap();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader((&mut file).take(self.size())).unwrap();
        assert_eq!(
            hasher.finalize(),
            digest::of_file(&self.source),
            "{}",
            path.display()
        );
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert!(
            rest.iter().all(|byte| *byte == volume::OLD),
            "what lies behind the copy changed"
        );
    }
}

/// `proxy-client copy … --json`, which must succeed: its report.
fn copy(arguments: &[&str]) -> Value {
    let stdout = program::proxy_client(&[&["copy", "--json"], arguments].concat());
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(
        number("bytes_data") + number("bytes_zero"),
        number("size"),
        "{report}"
    );
    report
}

/// `proxy-client copy`, which must fail with 1 and this kind.
fn fails(kind: &str, arguments: &[&str]) -> Value {
    let error = program::fails("proxy-client", 1, &[&["copy"], arguments].concat());
    assert_eq!(error["kind"], kind, "{error}");
    error
}
