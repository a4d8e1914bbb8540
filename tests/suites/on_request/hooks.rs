//! Hooks of several freezes, of which a client may have begun one: none runs between those of another.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::needs_loop_devices;
use tests::program::nbd_export;
use tests::site::text;

use super::refusals::refusal;
use super::{Ground, NEW, run};

/// Hooks that write down that they run; the first waits for as long as a file is there.
pub(super) struct Hooks {
    directory: TempDir,
}

impl Hooks {
    pub(super) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// For the agent's file.
    pub(super) fn table(&self) -> String {
        let (log, stop) = (self.path("log"), self.path("stop"));
        let (log, stop) = (log.display(), stop.display());
        format!(
            "[hooks]\ntimeout = 300\n\
             pre-freeze = \"echo begins >> {log}; while [ -e {stop} ]; do sleep 0.05; done; echo begun >> {log}\"\n\
             post-freeze = \"echo frozen >> {log}\"\npost-thaw = \"echo thawed >> {log}\"\n"
        )
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub(super) fn stop(&self) {
        fs::write(self.path("stop"), "").unwrap();
    }

    pub(super) fn go_on(&self) {
        fs::remove_file(self.path("stop")).unwrap();
    }

    pub(super) fn log_ends_with(&self, word: &str) {
        let deadline = Instant::now() + Duration::from_secs(100);
        while self.log().last().is_none_or(|last| last != word) {
            assert!(Instant::now() < deadline, "{word} never came: {:?}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_freeze_that_takes_long_holds_nobody_else_up_and_costs_its_client_no_time() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let hooks = Hooks::new();
    hooks.stop();
    // Seconds.
    let ground = Ground::with_listen("handshake-timeout = 5", "", &hooks.table());
    let uri = ground.site.uri(NEW);
    let entered = thread::scope(|scope| {
        let waits = scope.spawn(|| run("nbdinfo", &["--size", &uri]));
        hooks.log_ends_with("begins");
        let server = format!("nbd+unix:///?socket={}", ground.site.socket().display());
        let listed = run("nbdinfo", &["--list", "--json", &server]);
        thread::sleep(Duration::from_secs(6));
        let still_waits = !waits.is_finished();
        hooks.go_on();
        assert!(listed.status.success() && still_waits, "{listed:?}");
        waits.join().unwrap()
    });
    assert!(entered.status.success(), "{entered:?}");
    assert_eq!(
        String::from_utf8_lossy(&entered.stdout).trim(),
        (12 << 20).to_string()
    );
    assert_eq!(ground.frozen().len(), 1);
}

#[test]
fn no_hook_runs_between_those_of_another_freeze() {
    needs_loop_devices!("mkfs.xfs");
    let hooks = Hooks::new();
    let ground = Ground::new("", &format!("{}[on-request]\nevery = 0", hooks.table()));
    let control = ground.site.control();
    let order = |words: &[&str]| nbd_export(&[words, &["--control", text(&control)]].concat());
    order(&["freeze", "vm", "--as", "old"]);
    hooks.stop();
    let before = hooks.log().len();
    thread::scope(|scope| {
        scope.spawn(|| order(&["freeze", "vm", "--as", "first"]));
        hooks.log_ends_with("begins");
        let asked = Instant::now();
        let said = refusal(&ground);
        assert!(said.contains("it is busy"), "{said}");
        assert!(
            asked.elapsed() < Duration::from_secs(25),
            "a client does not wait for that"
        );
        scope.spawn(|| order(&["freeze", "vm", "--as", "second"]));
        scope.spawn(|| order(&["thaw", "vm@old"]));
        thread::sleep(Duration::from_millis(700));
        let between = hooks.log().split_off(before);
        hooks.go_on();
        assert_eq!(between, ["begins"], "nothing of the others");
    });
    let log = hooks.log().split_off(before);
    assert_eq!(log[..3], ["begins", "begun", "frozen"], "{log:?}");
    let mut rest = log[3..].to_vec();
    rest.retain(|line| line != "thawed");
    assert_eq!((rest.len(), log.len()), (3, 7), "{log:?}");
    let second = log.iter().rposition(|line| line == "begins").unwrap();
    assert_eq!(log[second..second + 3], ["begins", "begun", "frozen"], "{log:?}");
    assert_eq!(ground.frozen().len(), 2);
}

/// Its hold is a quarter of an hour, and there may be one at a time.
#[test]
fn what_a_client_had_made_that_did_not_wait_for_it_ends() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let hooks = Hooks::new();
    let ground = Ground::new("", &format!("{}[on-request]\nevery = 0\nmost = 1", hooks.table()));
    hooks.stop();
    let mut client = Command::new("nbdinfo")
        .args(["--size", &ground.site.uri(NEW)])
        .spawn()
        .unwrap();
    hooks.log_ends_with("begins");
    client.kill().unwrap();
    client.wait().unwrap();
    hooks.go_on();
    hooks.log_ends_with("thawed");
    assert_eq!(hooks.log(), ["begins", "begun", "frozen", "thawed"]);
    ground.wait_until_thawed();
    let entered = run("nbdinfo", &["--size", &ground.site.uri(NEW)]);
    assert!(entered.status.success(), "it takes no place: {entered:?}");
}
