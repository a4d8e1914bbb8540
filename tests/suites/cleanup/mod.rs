//! What agents leave behind when they are killed: found, shown, removed; and nothing of the living.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::disk::Mounted;
use tests::needs_loop_devices;
use tests::program::{Host, fails, nbd_export, start};
use tests::site::text;
use volmap::sys::inode_flags;

/// A file system with volumes, and a state directory beside it.
struct Ground {
    disk: Mounted,
}

impl Ground {
    fn new(disk: Mounted) -> Self {
        for n in 0..3 {
            fs::write(disk.path.join(format!("{n}.img")), vec![n; 1 << 20]).unwrap();
        }
        Self { disk }
    }

    fn state(&self) -> String {
        text(&self.disk.outside().join("state")).to_owned()
    }

    fn volume(&self, n: usize) -> PathBuf {
        self.disk.path.join(format!("{n}.img"))
    }

    /// Arguments of an agent that is told from others by a number.
    fn arguments(&self, agent: usize, more: &[&str]) -> Vec<String> {
        let outside = |name: String| text(&self.disk.outside().join(name)).to_owned();
        let mut arguments = vec!["--state-dir".to_owned(), self.state()];
        arguments.extend(["--socket".to_owned(), outside(format!("s{agent}"))]);
        arguments.extend(["--control".to_owned(), outside(format!("c{agent}"))]);
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        arguments
    }

    fn serve(&self, agent: usize, more: &[&str]) -> Host {
        let arguments = self.arguments(agent, more);
        Host::serve(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `nbd-export cleanup --json`.
    fn cleanup(&self, more: &[&str]) -> Vec<Value> {
        let state = self.state();
        let arguments = [&["cleanup", "--json", "--state-dir", &state], more].concat();
        let found: Value = serde_json::from_str(&nbd_export(&arguments)).unwrap();
        found["leftovers"].as_array().unwrap().clone()
    }

    fn clones(&self) -> usize {
        let names = fs::read_dir(&self.disk.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_str().unwrap().ends_with(".frozen"))
            .count()
    }

    fn is_immutable(&self, n: usize) -> bool {
        let file = File::open(self.volume(n)).unwrap();
        inode_flags::get(&file).unwrap().is_immutable()
    }
}

fn states(found: &[Value]) -> Vec<(&str, &str)> {
    found
        .iter()
        .map(|row| (row["kind"].as_str().unwrap(), row["state"].as_str().unwrap()))
        .collect()
}

#[test]
fn clones_of_the_dead_are_removed_and_those_of_the_living_are_not() {
    needs_loop_devices!("mkfs.xfs");
    let ground = Ground::new(Mounted::xfs(320 << 20));
    assert_eq!(ground.cleanup(&[]), [] as [Value; 0]);
    let (one, two) = (ground.volume(0), ground.volume(1));
    let dead = ground.serve(0, &[text(&one)]);
    let living = ground.serve(1, &[text(&two)]);
    assert_eq!(ground.clones(), 2);
    assert_eq!(
        ground.cleanup(&["--yes", text(&ground.disk.path)]),
        [] as [Value; 0]
    );
    dead.kill();
    assert_eq!(states(&ground.cleanup(&[])), [("clone", "there")]);
    assert_eq!(ground.clones(), 2, "it was only shown");
    assert_eq!(states(&ground.cleanup(&["--yes"])), [("clone", "removed")]);
    assert_eq!(ground.clones(), 1);
    assert!(ground.cleanup(&[]).is_empty());
    assert!(living.terminate().success());
    assert_eq!(ground.clones(), 0);
    assert!(ground.cleanup(&[]).is_empty());
    assert_eq!(
        fs::read_dir(ground.state()).unwrap().count(),
        0,
        "no pages are left"
    );
}

#[test]
fn clones_that_nobody_wrote_down_are_found_by_name() {
    needs_loop_devices!("mkfs.xfs");
    let ground = Ground::new(Mounted::xfs(320 << 20));
    let volume = ground.volume(0);
    let dead = ground.serve(0, &[text(&volume)]);
    dead.kill();
    fs::remove_dir_all(ground.state()).unwrap();
    assert!(ground.cleanup(&[]).is_empty());
    let directory = text(&ground.disk.path).to_owned();
    assert_eq!(states(&ground.cleanup(&[&directory])), [("clone", "there")]);
    assert_eq!(
        states(&ground.cleanup(&["--yes", &directory])),
        [("clone", "removed")]
    );
    assert_eq!(ground.clones(), 0);
}

#[test]
fn the_flag_on_a_quiesced_file_is_taken_back_unless_somebody_else_has_use_of_it() {
    needs_loop_devices!("mkfs.ext4");
    let ground = Ground::new(Mounted::ext4(128 << 20));
    let (ours, admins) = (ground.volume(0), ground.volume(1));
    inode_flags::set_immutable(&File::open(&admins).unwrap(), true).unwrap();
    let dead = ground.serve(0, &["--freeze", "quiesce", text(&ours), text(&admins)]);
    dead.kill();
    assert!(ground.is_immutable(0));
    // The flag was there before, so nobody else's agent wrote it down.
    let other = ground.serve(1, &["--freeze", "quiesce", text(&ours)]);
    assert_eq!(states(&ground.cleanup(&[])), [("immutable", "in-use")]);
    let state = ground.state();
    let error = fails("nbd-export", 1, &["cleanup", "--yes", "--state-dir", &state]);
    assert_eq!(error["kind"], "busy");
    assert!(ground.is_immutable(0));
    assert!(other.terminate().success());
    assert!(ground.is_immutable(0), "it was not that agent's to take back");
    assert_eq!(states(&ground.cleanup(&["--yes"])), [("immutable", "removed")]);
    assert!(!ground.is_immutable(0));
    assert!(ground.is_immutable(1), "what an administrator set stays");
    File::options().write(true).open(&ours).unwrap();
    inode_flags::set_immutable(&File::open(&admins).unwrap(), false).unwrap();
}

#[test]
fn a_file_that_took_the_name_is_left_alone() {
    needs_loop_devices!("mkfs.ext4");
    let ground = Ground::new(Mounted::ext4(128 << 20));
    let volume = ground.volume(0);
    let dead = ground.serve(0, &["--freeze", "quiesce", text(&volume)]);
    dead.kill();
    inode_flags::set_immutable(&File::open(&volume).unwrap(), false).unwrap();
    // The old one is kept, so that its inode number is not given to the new one.
    fs::rename(&volume, ground.disk.path.join("old")).unwrap();
    fs::write(&volume, b"another").unwrap();
    inode_flags::set_immutable(&File::open(&volume).unwrap(), true).unwrap();
    assert_eq!(states(&ground.cleanup(&[])), [("immutable", "unclear")]);
    let state = ground.state();
    fails("nbd-export", 1, &["cleanup", "--yes", "--state-dir", &state]);
    assert!(ground.is_immutable(0));
    inode_flags::set_immutable(&File::open(&volume).unwrap(), false).unwrap();
    // What has no name in its directory is gone, and so is its record.
    fs::remove_file(&volume).unwrap();
    assert!(ground.cleanup(&[]).is_empty());
}

/// Whether a file system takes a write.
fn takes_writes(directory: &Path) -> bool {
    let (done, written) = channel();
    let path = directory.join("probe");
    thread::spawn(move || {
        fs::write(path, b"x").unwrap();
        done.send(()).ok();
    });
    written.recv_timeout(Duration::from_secs(60)).is_ok()
}

/// Moments at which an agent is killed.
const STEPS: usize = 30;

/// Has the writer go on until it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn an_agent_that_is_killed_at_any_moment_leaves_nothing_that_cleanup_does_not_find() {
    needs_loop_devices!("mkfs.xfs");
    let ground = Ground::new(Mounted::xfs(320 << 20));
    let pattern = format!("{}/?.img", ground.disk.path.display());
    let writers: Vec<File> = (0..3)
        .map(|n| File::options().write(true).open(ground.volume(n)).unwrap())
        .collect();
    let set = ["--set", "vms", "--files", &pattern];
    let begun = Instant::now();
    ground.serve(STEPS, &set).terminate();
    let whole = begun.elapsed();
    let writing = AtomicBool::new(true);
    thread::scope(|scope| {
        let writing = &writing;
        scope.spawn(|| {
            let mut round = 0_u64;
            while writing.load(Ordering::Relaxed) {
                round += 1;
                for writer in &writers {
                    writer
                        .write_all_at(&[round.to_le_bytes()[0]; 4096], round % 200 * 4096)
                        .unwrap();
                }
            }
        });
        // The scope waits for the writer, whatever fails in here.
        let end = End(writing);
        let mut left_behind = 0;
        let mut killed = 0;
        let mut free = true;
        // From before its first step until after its last, on a machine of any speed.
        for step in 0..STEPS {
            let mut arguments = vec!["serve".to_owned()];
            arguments.extend(ground.arguments(step, &set));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let agent = start("nbd-export", &arguments, Stdio::null());
            thread::sleep(whole.mul_f64(1.5 * step as f64 / STEPS as f64));
            agent.signal(Signal::SIGKILL);
            drop(agent);
            killed += 1;
            free = takes_writes(&ground.disk.path);
            if !free {
                break;
            }
            left_behind += usize::from(ground.clones() > 0);
            // What the agent was starting at that moment has its lock, too, until it runs its own code.
            let begun = Instant::now();
            while ground.clones() > 0 && begun.elapsed() < Duration::from_secs(30) {
                ground.cleanup(&["--yes"]);
            }
            if ground.clones() > 0 {
                break;
            }
        }
        drop(end);
        assert!(free, "frozen for good, at step {killed}");
        assert_eq!(ground.clones(), 0, "not found, at step {killed}");
        assert!(
            left_behind > 0,
            "no moment was met at which anything is left behind"
        );
    });
}
