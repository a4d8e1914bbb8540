//! A host that is killed at each step of a copy, and what a reply to FUA and FLUSH means.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nbd_export::uri::NbdUri;
use tests::cow::backing::{Operation, Side};
use tests::cow::hold::Hold;
use tests::cow::log::{Change, Kind, Oracle};
use tests::cow::served::Served;
use tests::cow::volume::assert_same;
use tests::cow::world::{Stage, World};
use tests::needs;

use super::at_copies::{LEN, OFFSET, STEPS, Step};
use super::{ALL_UNITS, KINDS, SIZE};

/// What the child is told, by its environment.
const DIRECTORY: &str = "COW_KILLED_DIRECTORY";
const STEP: &str = "COW_KILLED_STEP";

/// Longest wait for the child.
const PATIENCE: Duration = Duration::from_secs(60);

fn step_of(name: &str) -> Step {
    let named = |step: &&Step| format!("{step:?}") == name;
    *STEPS.iter().find(named).unwrap()
}

/// The other half of the test below: a host with a frozen image, whose writer comes to a step and no further.
#[test]
#[ignore = "the child of a_host_that_is_killed_at_any_step_leaves_the_origin_intact"]
fn host_that_waits_to_be_killed() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let step = step_of(&std::env::var(STEP).unwrap());
    let world = World::at(&directory, SIZE, ALL_UNITS);
    let _frozen = world.freeze("old");
    let held = directory.join("held");
    world.hooks.set(move |moment| {
        if step.is_at(moment) {
            File::create(&held).unwrap();
            thread::sleep(2 * PATIENCE);
        }
    });
    File::create(directory.join("ready")).unwrap();
    thread::sleep(2 * PATIENCE);
}

struct Victim(Child);

impl Victim {
    fn start(directory: &Path, step: Step) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "cow::killed::host_that_waits_to_be_killed",
                "--ignored",
            ])
            .env(DIRECTORY, directory)
            .env(STEP, format!("{step:?}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut victim = Self(child);
        victim.await_file(&directory.join("ready"));
        victim
    }

    fn await_file(&mut self, path: &Path) {
        let begun = Instant::now();
        while !path.exists() {
            assert!(self.0.try_wait().unwrap().is_none(), "the child has ended");
            assert!(begun.elapsed() < PATIENCE, "no {}", path.display());
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Kills a host while a request is at `step`, and gives the volume as it has to be then.
fn kill_at(served: &Served, kind: Kind, step: Step) -> Vec<u8> {
    let directory = PathBuf::from(served.path(""));
    let mut victim = Victim::start(&directory, step);
    let socket = served.path("nbd.sock");
    let uri: NbdUri = format!("nbd+unix:///vol?socket={socket}").parse().unwrap();
    let mut content = served.oracle.settled();

    // What was replied to stays, flushed or not. In the last units: no step of the request that is killed.
    let mut writer = served.client_of(&uri);
    for (fua, offset) in [(true, SIZE - 300), (false, SIZE - 200)] {
        writer.fua = fua;
        let kind = Kind::Write(if fua { *b"with FUA" } else { *b"without " });
        let change = Change {
            offset,
            len: 100,
            kind,
        };
        writer.change(change);
        change.apply(&mut content);
    }
    let (offset, len) = (OFFSET, LEN);
    let change = Change { offset, len, kind };
    let killed = thread::spawn(move || writer.try_change(change).unwrap_err());
    victim.await_file(&directory.join("held"));
    victim.kill();
    killed.join().unwrap();
    if step == Step::Written {
        change.apply(&mut content);
    }
    for name in ["ready", "held", "nbd.sock"] {
        fs::remove_file(directory.join(name)).unwrap();
    }
    content
}

#[test]
fn a_host_that_is_killed_at_any_step_leaves_the_origin_intact() {
    needs!("zstd");
    for (nth, kind) in KINDS.into_iter().enumerate() {
        let mut served = Served::prepared(SIZE);
        for step in STEPS {
            eprintln!("{kind:?} {step:?}");
            let content = kill_at(&served, kind, step);
            assert_same(
                &fs::read(served.path("origin")).unwrap(),
                &content,
                "the origin after the kill",
            );

            served.oracle = Oracle::new(content.clone());
            served.start();
            let listed = served.list();
            assert_eq!(
                listed["volumes"][0]["frozen"],
                serde_json::json!([]),
                "gone, and said so"
            );
            assert_eq!(
                listed["volumes"][0]["copy_area"]["used"], 0,
                "the copy area is ours again"
            );
            assert_same(&served.client().read_all().unwrap(), &content, "served again");
            if nth == 0 {
                let new = served.ask(&["freeze", "vol", "--as", "next"]);
                served.assert_backs_up(new.trim(), &content);
            }
            served.terminate();
        }
    }
}

/// The reply to FUA and FLUSH comes when the sync has, which began after the write had ended.
#[test]
fn a_reply_to_fua_and_flush_comes_after_the_sync() {
    let write = Change {
        offset: OFFSET,
        len: LEN,
        kind: Kind::Write(*b"another "),
    };
    for (fua, frozen) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = World::open(Stage::TwoDisks, SIZE, ALL_UNITS);
        let _image = frozen.then(|| world.freeze("one"));
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let hold = Hold::new();
        let (point, seen) = (hold.point(), Arc::clone(&order));
        world.hooks.set(move |moment| {
            if moment.side == Side::Origin && matches!(moment.operation, Operation::Write | Operation::Sync) {
                seen.lock().unwrap().push((moment.operation, moment.done));
                if moment.operation == Operation::Sync && !moment.done {
                    point.pass();
                }
            }
        });
        let mut client = world.writer();
        client.fua = fua;
        let asked = thread::spawn(move || {
            client.change(write);
            if !fua {
                client.flush().unwrap();
            }
        });
        hold.wait();
        thread::sleep(Duration::from_millis(50));
        assert!(!asked.is_finished(), "a reply before the sync has ended");
        hold.release();
        asked.join().unwrap();
        let expected =
            [Operation::Write, Operation::Sync].map(|operation| [(operation, false), (operation, true)]);
        assert_eq!(*order.lock().unwrap(), expected.concat());
        world.hooks.clear();
    }
}
