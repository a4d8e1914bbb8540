//! The guardian, asked directly: file systems that it froze are thawed whatever its agent does.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::disk::Mounted;
use tests::needs_loop_devices;
use tests::program::{Host, built, nbd_export};
use tests::site::text;
use volmap::sys::file_system;

/// A guardian without an agent.
struct Guard {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Guard {
    fn start() -> Self {
        let mut child = Command::new(built("nbd-export"))
            .arg("guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// One that writes down what it freezes.
    fn with_state_dir(state: &Path) -> Self {
        let mut guard = Self::start();
        let hooks = json!({ "pre_freeze": null, "post_freeze": null, "post_thaw": null,
            "timeout": { "secs": 20, "nanos": 0 } });
        let occasion = json!({ "set": null, "volumes": [], "frozen": [] });
        let state = text(state).as_bytes();
        let begin = json!({ "begin": { "hooks": hooks, "occasion": occasion, "state_dir": state } });
        assert_eq!(guard.ask(&begin), "done");
        guard
    }

    /// As the kernel does where memory is short, and as a service manager does to all that is left of a service.
    fn killed(mut self) {
        self.child.kill().unwrap();
    }

    fn ask(&mut self, order: &Value) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{order}: {line}"))
    }

    fn freeze(&mut self, on: &[&Path], seconds: u64) -> Value {
        let deadline = json!({ "secs": seconds, "nanos": 0 });
        self.ask(&json!({ "freeze-file-systems": { "on": on, "deadline": deadline } }))
    }

    fn hang_up(&mut self) {
        drop(self.child.stdin.take());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.hang_up();
        self.child.wait().unwrap();
    }
}

/// Thaws file systems when it is dropped, or after five minutes: what a failed test leaves frozen holds up all that is to come.
struct Thaw(Vec<PathBuf>);

impl Thaw {
    fn of(paths: &[&Path]) -> Self {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        let later = Self(paths.clone());
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(300));
            drop(later);
        });
        Self(paths)
    }
}

impl Drop for Thaw {
    fn drop(&mut self) {
        for path in &self.0 {
            // It is an error where it is not frozen, as it should be.
            if let Ok(root) = File::open(path) {
                file_system::thaw(&root).ok();
            }
        }
    }
}

/// What `nbd-export cleanup` says, of the kind and state of each leftover.
fn cleanup(state: &Path, more: &[&str]) -> Vec<(String, String)> {
    let arguments = [&["cleanup", "--json", "--state-dir", text(state)], more].concat();
    let found: Value = serde_json::from_str(&nbd_export(&arguments)).unwrap();
    let word = |row: &Value, key| row[key].as_str().unwrap().to_owned();
    let rows = found["leftovers"].as_array().unwrap().iter();
    rows.map(|row| (word(row, "kind"), word(row, "state"))).collect()
}

fn file_systems(count: usize, state: &str) -> Vec<(String, String)> {
    vec![("file-system".to_owned(), state.to_owned()); count]
}

/// Whether a file system takes a write, which waits while it is frozen: how long that took, if it came to an end in time.
fn write_within(path: &Path, patience: Duration) -> Option<Duration> {
    let (done, written) = channel();
    let path = path.join("probe");
    let begun = Instant::now();
    thread::spawn(move || {
        fs::write(path, b"x").unwrap();
        done.send(()).ok();
    });
    match written.recv_timeout(patience) {
        Ok(()) => Some(begun.elapsed()),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => panic!("the write failed"),
    }
}

const SOON: Duration = Duration::from_secs(45);
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
fn file_systems_are_thawed_on_order_at_the_deadline_and_when_the_agent_goes() {
    needs_loop_devices!("mkfs.xfs", "mkfs.ext4");
    let disks = [Mounted::xfs(320 << 20), Mounted::ext4(64 << 20)];
    let paths = [disks[0].path.as_path(), disks[1].path.as_path()];

    let mut guard = Guard::start();
    assert_eq!(guard.freeze(&paths, 60), "done");
    assert!(write_within(paths[0], A_WHILE).is_none(), "it is frozen");
    assert_eq!(guard.ask(&json!("thaw-file-systems")), "done");
    for path in paths {
        assert!(write_within(path, SOON).is_some());
    }

    // The agent hangs.
    assert_eq!(guard.freeze(&paths, 5), "done");
    for path in paths {
        assert!(write_within(path, SOON).is_some(), "thawed at the deadline");
    }
    let late = guard.ask(&json!("thaw-file-systems"));
    assert!(late["failed"].as_str().unwrap().contains("deadline"), "{late}");

    // The agent dies. Signals to its whole group change nothing.
    assert_eq!(guard.freeze(&paths, 60), "done");
    let pid = Pid::from_raw(i32::try_from(guard.child.id()).unwrap());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(pid, signal).unwrap();
    }
    assert!(write_within(paths[1], A_WHILE).is_none(), "it is frozen still");
    guard.hang_up();
    for path in paths {
        assert!(write_within(path, SOON).is_some());
    }
}

#[test]
fn all_are_frozen_or_none_is_and_what_somebody_else_froze_stays_so() {
    needs_loop_devices!("mkfs.xfs", "mkfs.ext4", "fsfreeze");
    let disks = [Mounted::xfs(320 << 20), Mounted::ext4(64 << 20)];
    let paths = [disks[0].path.as_path(), disks[1].path.as_path()];
    let mut guard = Guard::start();
    tests::disk::run("fsfreeze", &["--freeze", text(paths[1])]);
    let refused = guard.freeze(&paths, 60);
    let others = write_within(paths[1], A_WHILE);
    tests::disk::run("fsfreeze", &["--unfreeze", text(paths[1])]);
    assert!(
        refused["failed"].as_str().unwrap().contains("somebody else"),
        "{refused}"
    );
    assert!(others.is_none(), "what somebody else froze was thawed");
    assert!(
        write_within(paths[0], SOON).is_some(),
        "and ours is not left frozen"
    );

    // Somebody else thaws what we froze: then it did not stand still.
    assert_eq!(guard.freeze(&paths, 60), "done");
    tests::disk::run("fsfreeze", &["--unfreeze", text(paths[0])]);
    let thawed = guard.ask(&json!("thaw-file-systems"));
    assert!(
        thawed["failed"].as_str().unwrap().contains("somebody else"),
        "{thawed}"
    );
    assert!(write_within(paths[1], SOON).is_some());
}

#[test]
fn what_is_frozen_when_the_guardian_is_killed_too_is_thawed_by_cleanup() {
    needs_loop_devices!("mkfs.xfs", "mkfs.ext4");
    let disks = [Mounted::xfs(320 << 20), Mounted::ext4(64 << 20)];
    let paths = [disks[0].path.as_path(), disks[1].path.as_path()];
    let _thaw = Thaw::of(&paths);
    // The second one lies in what is frozen: nobody can write to it before the thaw.
    for state in [disks[0].outside().join("state"), paths[0].join("state")] {
        let mut guard = Guard::with_state_dir(&state);
        assert_eq!(guard.freeze(&paths, 60), "done");
        assert_eq!(cleanup(&state, &[]), [], "the guardian lives");
        guard.killed();
        assert!(write_within(paths[1], A_WHILE).is_none(), "it is frozen");
        assert_eq!(cleanup(&state, &[]), file_systems(2, "there"));
        assert!(write_within(paths[1], A_WHILE).is_none(), "it was only shown");
        assert_eq!(cleanup(&state, &["--yes"]), file_systems(2, "removed"));
        for path in paths {
            assert!(write_within(path, SOON).is_some());
        }
        assert_eq!(cleanup(&state, &[]), []);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "no pages are left");
    }
}

#[test]
fn what_is_frozen_when_the_guardian_is_killed_too_is_thawed_by_the_next_agent() {
    needs_loop_devices!("mkfs.xfs");
    let disk = Mounted::xfs(320 << 20);
    let _thaw = Thaw::of(&[&disk.path]);
    fs::write(disk.path.join("volume"), vec![7; 1 << 20]).unwrap();
    for state in [disk.outside().join("state"), disk.path.join("state")] {
        let mut guard = Guard::with_state_dir(&state);
        assert_eq!(guard.freeze(&[&disk.path], 60), "done");
        guard.killed();
        assert!(write_within(&disk.path, A_WHILE).is_none(), "it is frozen");
        let volume = disk.path.join("volume");
        let socket = disk.outside().join("socket");
        let agent = Host::serve(&[
            "--state-dir",
            text(&state),
            "--socket",
            text(&socket),
            text(&volume),
        ]);
        assert!(write_within(&disk.path, SOON).is_some());
        assert!(agent.terminate().success());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "no pages are left");
    }
}

#[test]
fn a_guardian_that_ends_leaves_nothing_written_down() {
    needs_loop_devices!("mkfs.ext4");
    let disk = Mounted::ext4(64 << 20);
    let _thaw = Thaw::of(&[&disk.path]);
    let state = disk.path.join("state");
    let mut guard = Guard::with_state_dir(&state);
    assert_eq!(guard.freeze(&[&disk.path], 60), "done");
    assert_eq!(guard.ask(&json!("thaw-file-systems")), "done");
    assert_eq!(guard.freeze(&[&disk.path], 60), "done");
    drop(guard);
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

/// A write to a file system that keeps its freeze waiting for some seconds.
struct SlowWrite(Child);

impl SlowWrite {
    fn begin(directory: &Path, path: &Path, seconds: u64) -> Self {
        let (source, program) = (directory.join("slow_write.c"), directory.join("slow_write"));
        fs::write(&source, include_str!("slow_write.c")).unwrap();
        tests::disk::run("cc", &["-o", text(&program), text(&source), "-pthread"]);
        let mut child = Command::new(&program)
            .arg(path.join("slow"))
            .arg(seconds.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        assert_eq!(said, "writing\n");
        Self(child)
    }
}

impl Drop for SlowWrite {
    fn drop(&mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn a_freeze_that_comes_to_its_end_after_its_deadline_is_undone() {
    needs_loop_devices!("mkfs.xfs", "cc");
    let disk = Mounted::xfs(320 << 20);
    let _thaw = Thaw::of(&[&disk.path]);
    let state = disk.outside().join("state");
    let mut guard = Guard::with_state_dir(&state);
    let slow = SlowWrite::begin(disk.outside(), &disk.path, 4);
    let late = guard.freeze(&[&disk.path], 1);
    assert!(
        late["failed"].as_str().unwrap().contains("not frozen within"),
        "{late}"
    );
    let occasion = json!({ "set": null, "volumes": [], "frozen": [] });
    let ended = guard.ask(&json!({ "end": { "outcome": "failed", "occasion": occasion } }));
    assert_eq!(ended, "done");
    drop(slow);
    drop(guard);
    assert!(write_within(&disk.path, SOON).is_some(), "it is left frozen");
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

#[test]
fn a_freeze_that_was_under_way_when_its_guardian_was_killed_is_undone_by_the_next_agent() {
    needs_loop_devices!("mkfs.xfs", "cc");
    let disk = Mounted::xfs(320 << 20);
    let _thaw = Thaw::of(&[&disk.path]);
    fs::write(disk.path.join("volume"), vec![7; 1 << 20]).unwrap();
    // In what is being frozen.
    let state = disk.path.join("state");
    let mut guard = Guard::with_state_dir(&state);
    let slow = SlowWrite::begin(disk.outside(), &disk.path, 4);
    let deadline = json!({ "secs": 60, "nanos": 0 });
    let freeze = json!({ "freeze-file-systems": { "on": [disk.path], "deadline": deadline } });
    writeln!(guard.child.stdin.as_mut().unwrap(), "{freeze}").unwrap();
    thread::sleep(Duration::from_secs(1));
    guard.child.kill().unwrap();
    let (socket, volume) = (disk.outside().join("socket"), disk.path.join("volume"));
    let agent = Host::serve(&[
        "--state-dir",
        text(&state),
        "--socket",
        text(&socket),
        text(&volume),
    ]);
    assert!(write_within(&disk.path, SOON).is_some());
    drop(slow);
    assert!(agent.terminate().success());
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}
