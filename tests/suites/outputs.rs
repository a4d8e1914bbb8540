//! Outputs that are full or fail: no half of an image looks like a whole one.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::peer::Peer;
use tests::{disk, image, needs, needs_loop_devices, program, volume};

#[test]
fn a_stream_that_is_full_ends_the_backup() {
    needs!("nbdkit");
    let directory = disk::scratch();
    let source = directory.path().join("volume");
    volume::motley(&source);
    let peer = Peer::nbdkit_file(&[], &source, &[]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = std::process::Command::new(program::built("proxy-client"))
        .args([
            "--error-format",
            "json",
            "backup",
            &peer.uri_text(""),
            "--output",
            "-",
        ])
        .stdin(Stdio::null())
        .stdout(full)
        .output()
        .unwrap();
    let error = program::error_object(&output);
    assert_eq!(
        (output.status.code(), &error["kind"]),
        (Some(1), &"io".into()),
        "{error}"
    );
    assert!(
        error["message"].as_str().unwrap().contains("No space left"),
        "{error}"
    );
}

/// In kB.
fn most_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A file with noise in some ranges, which lie apart on the disk as well, so that each is read by itself: clones of parts of another.
fn scattered(path: &Path, size: u64, data: &[Range<u64>]) {
    const APART: u64 = 64 << 10;
    let source = path.with_extension("source");
    let all: u64 = data.iter().map(|range| range.end - range.start + APART).sum();
    volume::dense(&source, all);
    File::create(path).unwrap().set_len(size).unwrap();
    let mut at = 0;
    let mut commands = String::new();
    for range in data {
        let len = range.end - range.start;
        writeln!(
            commands,
            "reflink {} {at} {} {len}",
            source.display(),
            range.start
        )
        .unwrap();
        at += len + APART;
    }
    let mut xfs_io = std::process::Command::new("xfs_io")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    xfs_io
        .stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    assert!(xfs_io.wait().unwrap().success());
    std::fs::remove_file(source).unwrap();
    let stored = File::open(path).unwrap().metadata().unwrap().blocks() * 512;
    assert!(stored >= all - APART * data.len() as u64, "{stored}");
}

/// Of what cannot be compressed, in pieces that each have memory of their own: the most that batches can take. Pieces of 64 KiB fill
/// the memory of a short read, and those of 128 KiB are an eighth of a long one.
#[test]
fn while_an_output_takes_nothing_the_reads_stop_and_memory_stays_bounded() {
    needs_loop_devices!("mkfs.xfs", "xfs_io");
    let site = disk::Mounted::xfs(3 << 30);
    let served: Vec<(String, PathBuf)> = [(10_000_u64, 64_u64 << 10), (5000, 128 << 10)]
        .into_iter()
        .map(|(count, len)| {
            let name = format!("v{}", len >> 10);
            let volume = site.path.join(&name);
            let pieces: Vec<_> = (0..count)
                .map(|piece| (piece << 20)..(piece << 20) + len)
                .collect();
            scattered(&volume, count << 20, &pieces);
            (name, volume)
        })
        .collect();
    let socket = site.outside().join("s");
    let volumes: Vec<String> = served
        .iter()
        .map(|(name, volume)| format!("{name}={}", volume.display()))
        .collect();
    let identity = format!("{}=lun0", site.disk.device.display());
    let host = program::Host::serve(&[
        &volumes[0],
        &volumes[1],
        "--socket",
        socket.to_str().unwrap(),
        "--identity",
        &identity,
    ]);
    let lun = format!("lun0={}", site.disk.lun.display());
    let spool = format!("{},size=64M", site.outside().display());
    for (name, more) in [("v64", &[][..]), ("v64", &["--spool", &spool]), ("v128", &[])] {
        let mut job = std::process::Command::new(program::built("proxy-client"))
            .args(["backup", host.uri(name), "--output", "-", "--lun", &lun])
            .args(["--host-is-this-machine", "--no-fallback"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (begun, mut told) = (Instant::now(), (0, Instant::now()));
        while told.0 < 128 << 10 || told.1.elapsed() < Duration::from_secs(2) {
            assert!(job.try_wait().unwrap().is_none(), "it waits for its output");
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the reads go on, or never began"
            );
            let now = most_memory(job.id());
            if now != told.0 {
                told = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut output = job.stdout.take().unwrap();
        // It goes on when it is taken: of most of it that tells how much memory it takes then.
        let first = std::io::copy(&mut output.by_ref().take(500 << 20), &mut std::io::sink()).unwrap();
        let most = most_memory(job.id());
        assert!(most < 256 << 10, "{name} {more:?}: {most} kB");
        let taken = first + std::io::copy(&mut output, &mut std::io::sink()).unwrap();
        assert!(job.wait().unwrap().success());
        assert!(taken > 600 << 20, "{taken}");
    }
}

#[test]
fn a_full_file_system_ends_the_backup_and_nothing_is_left() {
    needs_loop_devices!("nbdkit", "mkfs.ext4");
    let directory = disk::scratch();
    let source = directory.path().join("volume");
    volume::dense(&source, 24 << 20);
    let small = disk::Mounted::new(8 << 20, 512, "mkfs.ext4", &["-q", "-F", "-O", "^has_journal"]);
    let output = small.path.join("image");
    let peer = Peer::nbdkit_file(&[], &source, &[]);
    let arguments = ["backup", &peer.uri_text(""), "--output", output.to_str().unwrap()];
    let error = program::fails("proxy-client", 1, &arguments);
    assert_eq!(error["kind"], "io");
    image::assert_nothing_left(&output);
}

/// Writes go to the page cache, and only the sync says that the disk below took nothing more.
#[test]
fn a_disk_that_loses_writes_makes_no_image() {
    needs_loop_devices!("nbdkit", "mkfs.ext4");
    let directory = disk::scratch();
    let source = directory.path().join("volume");
    volume::dense(&source, 24 << 20);
    let small = disk::Mounted::new(8 << 20, 512, "mkfs.ext4", &["-q", "-F", "-O", "^has_journal"]);
    // A thin disk that promises more than there is: for its file system, being full is EIO.
    let thin = disk::LoopDisk::new(&small.path, "thin", 64 << 20, 512);
    let device = thin.device.to_str().unwrap();
    disk::run("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", device]);
    let path = directory.path().join("thin");
    std::fs::create_dir(&path).unwrap();
    disk::run("mount", &[device, path.to_str().unwrap()]);
    let output = path.join("image");
    let peer = Peer::nbdkit_file(&[], &source, &[]);
    let command = ["--error-format=json", "backup", &peer.uri_text(""), "--output"];
    let ended = program::run(
        "proxy-client",
        &[&command[..], &[output.to_str().unwrap()]].concat(),
    );
    let left: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "lost+found")
        .collect();
    disk::run("umount", &[path.to_str().unwrap()]);
    let error = program::error_object(&ended);
    assert_eq!(
        (ended.status.code(), &error["kind"]),
        (Some(1), &"io".into()),
        "{error}"
    );
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_rate_that_was_asked_for_is_kept_to() {
    needs!("nbdkit", "zstd");
    let directory = disk::scratch();
    let source = directory.path().join("volume");
    volume::dense(&source, 6 << 20);
    let output = directory.path().join("image");
    let peer = Peer::nbdkit_file(&[], &source, &[]);
    let begun = Instant::now();
    program::backup(&[
        &peer.uri_text(""),
        "--output",
        output.to_str().unwrap(),
        "--limit-rate",
        "3M",
    ]);
    assert!(
        begun.elapsed() > Duration::from_millis(1400),
        "{:?}",
        begun.elapsed()
    );
    image::assert_holds(&output, &source);
}
