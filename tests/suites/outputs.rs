//! Outputs that are full or fail: no half of an image looks like a whole one.

use std::fs::File;
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
