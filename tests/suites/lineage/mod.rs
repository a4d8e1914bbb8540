//! What changed between two frozen images, as clients are told: whatever differs is told to have changed, by every provider that tells.

mod backups;
mod blocks;
mod clones;
mod origin;
mod served;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::disk::{self, Scratch};
use tests::program::{self, Host, nbd_export, proxy_client};

const MIB: u64 = 1 << 20;
const VOLUME: &str = "vm";

/// An agent that keeps frozen images for incrementals.
struct Agent {
    host: Host,
    directory: Scratch,
}

/// A frozen image, with what it holds.
struct Frozen {
    export: String,
    uuid: String,
    lineage: Vec<String>,
    bytes: Vec<u8>,
}

impl Agent {
    fn serve(arguments: &[&str]) -> Self {
        let directory = disk::scratch();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (socket, control) = (path("nbd"), path("control"));
        let own = ["--no-freeze", "--socket", &socket, "--control", &control];
        Self {
            host: Host::serve(&[arguments, &own].concat()),
            directory,
        }
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    fn uri(&self, export: &str) -> String {
        let socket = self.directory.path().join("nbd");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// Runs a verb of `nbd-export` against this agent.
    fn ask(&self, arguments: &[&str]) -> Value {
        let control = self.control();
        let to = ["--json", "--control", control.to_str().unwrap()];
        serde_json::from_str(&nbd_export(&[arguments, &to].concat())).unwrap()
    }

    fn freeze(&self, id: &str) -> Frozen {
        let made = self.ask(&["freeze", VOLUME, "--as", id]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let export = text(&made["export"]);
        Frozen {
            bytes: self.read(&export),
            export,
            uuid: text(&made["uuid"]),
            lineage: made["lineage"].as_array().unwrap().iter().map(text).collect(),
        }
    }

    fn thaw(&self, frozen: &Frozen, more: &[&str]) {
        self.ask(&[&["thaw", &frozen.export], more].concat());
    }

    fn read(&self, export: &str) -> Vec<u8> {
        let copy = self.directory.path().join("copy");
        let _ = std::fs::remove_file(&copy);
        proxy_client(&["copy", &self.uri(export), copy.to_str().unwrap()]);
        std::fs::read(copy).unwrap()
    }

    /// The UUIDs that the export lists a context of.
    fn listed(&self, frozen: &Frozen) -> Vec<String> {
        let details = proxy_client(&["info", "--json", &self.uri(&frozen.export)]);
        let details: Value = serde_json::from_str(&details).unwrap();
        let names = details["contexts"].as_array().unwrap().iter();
        let since = |name: &Value| Some(name.as_str()?.strip_prefix("x-volmap:changed:")?.to_owned());
        names.filter_map(since).collect()
    }

    /// Whatever is told to be the same is; gives how many bytes that are.
    fn assert_told_right(&self, newer: &Frozen, older: &Frozen) -> u64 {
        let map = format!("--map=x-volmap:changed:{}", older.uuid);
        let map = proxy_client(&["info", &map, "--json", &self.uri(&newer.export)]);
        let same = told_same(&map, newer.bytes.len());
        assert_same(&newer.bytes, &older.bytes, &same)
    }

    fn kept(&self) -> Vec<String> {
        let listing = self.ask(&["list"]);
        let kept = listing["volumes"][0]["kept"].as_array().unwrap().iter();
        kept.map(|kept| kept["uuid"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// What a map of `size` bytes tells to be the same; all of the volume is told of once.
pub(crate) fn told_same(map: &str, size: usize) -> Vec<Range<usize>> {
    let map: Value = serde_json::from_str(map).unwrap();
    let mut at = 0;
    let mut same = Vec::new();
    for line in map.as_array().unwrap() {
        let field = |name: &str| usize::try_from(line[name].as_u64().unwrap()).unwrap();
        assert_eq!(field("offset"), at);
        at += field("length");
        match field("type") {
            0 => same.push(field("offset")..at),
            1 => {}
            other => panic!("status {other}"),
        }
    }
    assert_eq!(at, size);
    same
}

/// Holds two contents to what is told to be the same; gives how many bytes that are.
pub(crate) fn assert_same(newer: &[u8], older: &[u8], same: &[Range<usize>]) -> u64 {
    for range in same {
        let then = older.get(range.clone());
        assert!(
            then == Some(&newer[range.clone()]),
            "{range:?} is told to be the same, and is not"
        );
    }
    same.iter().map(|range| range.len() as u64).sum()
}

/// `path` with random bytes, whose holes and runs are those of no pattern.
fn filled(path: &Path, size: u64) {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    for (nth, word) in (1_u64..).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(&nth.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[..word.len()]);
    }
    std::fs::write(path, bytes).unwrap();
}

/// An option that is not given says nothing.
#[test]
fn without_the_option_no_changes_are_offered() {
    let directory = disk::scratch();
    let path = directory.path().join("vm.img");
    filled(&path, MIB);
    let agent = Agent::serve(&[&format!("{VOLUME}={}", path.display())]);
    let one = agent.freeze("1");
    let two = agent.freeze("2");
    assert!(two.lineage.is_empty() && agent.listed(&two).is_empty());
    agent.thaw(&one, &[]);
    assert!(agent.kept().is_empty());
    let refused = program::run("nbd-export", &["serve", "/v", "--keep-for-incremental=0"]);
    assert_eq!(refused.status.code(), Some(2));
}
