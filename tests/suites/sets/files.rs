//! Files with writers, on XFS; and without, on ext4.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::disk::Mounted;
use tests::needs_loop_devices;
use tests::program::{Host, nbd_export, proxy_client, run};
use tests::site::text;
use tests::volume::noise;

use super::frozen_of;

const FILES: usize = 5;
const SIZE: usize = 4 << 20;
const COUNTERS: u64 = 256;

fn make_files(directory: &Path) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|n| directory.join(format!("disk{n}.img")))
        .collect();
    for (n, path) in paths.iter().enumerate() {
        fs::write(path, noise(n as u64, SIZE)).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&vec![0; 4096 * usize::try_from(COUNTERS).unwrap()], 0)
            .unwrap();
        file.sync_all().unwrap();
    }
    paths
}

/// Writes 1, 2, 3, … to one file after another, each into a block of its own for a while.
fn count(files: &[File], go_on: &AtomicBool) {
    let mut number = 0_u64;
    while go_on.load(Ordering::Relaxed) {
        number += 1;
        let file = &files[usize::try_from(number).unwrap() % FILES];
        let block = number / FILES as u64 % COUNTERS;
        file.write_all_at(&number.to_le_bytes(), block * 4096).unwrap();
    }
}

/// The largest number in a file.
fn largest(bytes: &[u8]) -> u64 {
    (0..usize::try_from(COUNTERS).unwrap())
        .map(|block| u64::from_le_bytes(bytes[block * 4096..block * 4096 + 8].try_into().unwrap()))
        .max()
        .unwrap()
}

#[test]
fn files_that_are_written_to_one_after_another_are_of_one_instant() {
    needs_loop_devices!("mkfs.xfs");
    let disk = Mounted::xfs(512 << 20);
    let paths = make_files(&disk.path);
    let writers: Vec<File> = paths
        .iter()
        .map(|path| File::options().write(true).open(path).unwrap())
        .collect();
    let go_on = AtomicBool::new(true);
    let outside = disk.outside();
    let (socket, control) = (outside.join("nbd"), outside.join("control"));
    thread::scope(|scope| {
        scope.spawn(|| count(&writers, &go_on));
        // A failed assertion must not leave the writer running.
        let _stop = Stop(&go_on);
        let pattern = format!("{}/disk?.img", disk.path.display());
        let identity = format!("{}=lun0", disk.disk.device.display());
        let host = Host::serve(&[
            "--set",
            "vms",
            "--files",
            &pattern,
            "--no-freeze",
            "--identity",
            &identity,
            "--socket",
            text(&socket),
            "--control",
            text(&control),
        ]);
        for round in 0..6 {
            let id = round.to_string();
            nbd_export(&["freeze", "vms", "--as", &id, "--control", text(&control)]);
            let mut numbers = Vec::new();
            for n in 0..FILES {
                let export = format!("disk{n}.img@{id}");
                let copy = outside.join("copy");
                let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
                proxy_client(&["copy", &uri, text(&copy)]);
                let bytes = fs::read(&copy).unwrap();
                fs::remove_file(&copy).unwrap();
                assert!(bytes[SIZE / 2..] == noise(n as u64, SIZE)[SIZE / 2..], "{export}");
                numbers.push(largest(&bytes));
                let about = frozen_of(text(&control), &export);
                let set = &about["set"];
                assert_eq!(set["name"], format!("vms@{id}"), "{about}");
                assert_eq!(
                    (&set["members"], &set["held_by"]),
                    (&FILES.into(), &"file-system".into())
                );
                assert!(set["window_ms"].as_u64().unwrap() < 10_000, "{about}");
                assert_eq!(about["strength"], "crash-consistent");
            }
            numbers.sort_unstable();
            let last = numbers[FILES - 1];
            let expected: Vec<u64> = (last + 1 - FILES as u64..=last).collect();
            assert!(last > 0);
            assert_eq!(numbers, expected, "round {round}: not of one instant");
            nbd_export(&["thaw", &format!("vms@{id}"), "--control", text(&control)]);
        }
        assert!(host.terminate().success());
    });
    assert_no_clones(&disk.path);
}

/// Stops the writer when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn assert_no_clones(directory: &Path) {
    let names = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let clones: Vec<_> = names
        .filter(|name| name.to_str().unwrap().ends_with(".frozen"))
        .collect();
    assert!(clones.is_empty(), "{clones:?}");
}

#[test]
fn files_without_writers_are_held_by_leases_and_freed_together() {
    needs_loop_devices!("mkfs.ext4");
    let disk = Mounted::ext4(128 << 20);
    let paths = make_files(&disk.path);
    let control = disk.outside().join("control");
    let socket = disk.outside().join("nbd");
    let mut arguments = vec![
        "--set",
        "vms",
        "--socket",
        text(&socket),
        "--control",
        text(&control),
    ];
    arguments.push("--files");
    arguments.extend(paths.iter().map(|path| text(path)));
    let host = Host::serve(&arguments);
    assert_eq!(host.uris.len(), FILES);
    let about = frozen_of(text(&control), "disk0.img");
    assert_eq!(
        (&about["method"], &about["strength"]),
        (&"quiesce".into(), &"quiesced".into())
    );
    assert_eq!(
        (&about["set"]["name"], &about["set"]["held_by"]),
        (&"vms".into(), &"lease".into())
    );
    let told = proxy_client(&["info", host.uri("disk0.img"), "--json"]);
    for word in [
        "set=vms",
        "set-members=5",
        "set-window-ms=",
        "held-by=lease",
        "strength=quiesced",
    ] {
        assert!(told.contains(word), "no {word} in {told}");
    }
    for path in &paths {
        assert!(File::options().write(true).open(path).is_err());
    }
    // One alone may go before the others.
    nbd_export(&["thaw", "disk1.img", "--control", text(&control)]);
    File::options().write(true).open(&paths[1]).unwrap();
    assert!(File::options().write(true).open(&paths[0]).is_err());
    nbd_export(&["thaw", "vms", "--control", text(&control)]);
    for path in &paths {
        File::options().write(true).open(path).unwrap();
    }
    assert!(host.terminate().success());
}

/// Whether a file system is written down in a state directory as one that may be frozen.
fn tells_of_a_freeze(state: &Path) -> bool {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let mut records = entries(state.to_owned()).flat_map(|page| entries(page.path()));
    records
        .any(|record| fs::read_to_string(record.path()).is_ok_and(|text| text.contains("kind file-system")))
}

#[test]
fn while_a_file_system_is_frozen_it_is_written_down() {
    needs_loop_devices!("mkfs.xfs");
    let disk = Mounted::xfs(512 << 20);
    // Where nobody writes, leases hold the files.
    let writers = make_files(&disk.path)
        .into_iter()
        .map(|path| File::options().write(true).open(path).unwrap());
    let _writers: Vec<File> = writers.collect();
    let outside = disk.outside();
    let (socket, control, state) = (
        outside.join("nbd"),
        outside.join("control"),
        outside.join("state"),
    );
    let pattern = format!("{}/disk?.img", disk.path.display());
    let at = [
        "--socket",
        text(&socket),
        "--control",
        text(&control),
        "--state-dir",
        text(&state),
    ];
    let set = [
        "--set",
        "vms",
        "--files",
        &pattern,
        "--no-freeze",
        "--freeze",
        "reflink",
    ];
    let host = Host::serve(&[&set[..], &at].concat());
    let go_on = AtomicBool::new(true);
    thread::scope(|scope| {
        let seen = scope.spawn(|| {
            while go_on.load(Ordering::Relaxed) {
                if tells_of_a_freeze(&state) {
                    return true;
                }
            }
            false
        });
        let stop = Stop(&go_on);
        // It may be told of for some milliseconds only, and this machine may be busy.
        let round = (0..60).find(|_| {
            nbd_export(&["freeze", "vms", "--as", "now", "--control", text(&control)]);
            nbd_export(&["thaw", "vms@now", "--control", text(&control)]);
            seen.is_finished()
        });
        drop(stop);
        assert!(seen.join().unwrap(), "nobody wrote it down: {round:?}");
    });
    assert!(!tells_of_a_freeze(&state));
    assert!(host.terminate().success());
}

#[test]
fn one_writer_refuses_the_whole_set_where_no_file_can_be_cloned() {
    needs_loop_devices!("mkfs.ext4");
    let disk = Mounted::ext4(128 << 20);
    let paths = make_files(&disk.path);
    let _writer = File::options().write(true).open(&paths[3]).unwrap();
    let mut arguments = vec!["--error-format", "json", "serve", "--set", "vms", "--files"];
    arguments.extend(paths.iter().map(|path| text(path)));
    let output = run("nbd-export", &arguments);
    assert_eq!(output.status.code(), Some(1));
    let error = tests::program::error_object(&output);
    assert_eq!(error["kind"], "freeze");
    assert!(
        error["message"].as_str().unwrap().contains("disk3.img"),
        "{error}"
    );
    let begun = Instant::now();
    for path in &paths {
        File::options().write(true).open(path).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "no lease is left");
}
