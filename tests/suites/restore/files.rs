//! To files.

use std::io::Write;

use nix::sys::signal::Signal;
use tests::{needs, program, volume};

use super::*;

#[test]
fn holes_stay_holes_in_a_new_file() {
    needs!("nbdkit");
    let backup = Backup::of(|path| {
        volume::sparse(
            path,
            256 * MIB,
            &[0..MIB, 100 * MIB..101 * MIB, 255 * MIB..256 * MIB],
        )
    });
    let target = backup.path("restored");
    backup.assert_restored(&target, &[]);
    let (was, is) = (volume::allocated(&backup.volume), volume::allocated(&target));
    assert!(is <= was + MIB, "{is} bytes on disk, the volume had {was}");
    image::assert_nothing_left(&backup.path("restored.partial"));
}

#[test]
fn old_data_in_a_file_do_not_survive() {
    needs!("nbdkit");
    let backup = Backup::new();
    let target = backup.path("old");
    for size in [MIB, 64 * MIB] {
        volume::full_of_old_data(&target, size);
        backup.assert_restored(&target, &["--force"]);
        assert_eq!(
            target.metadata().unwrap().len(),
            backup.volume.metadata().unwrap().len()
        );
    }
}

#[test]
fn a_file_with_data_is_refused_without_force() {
    needs!("nbdkit");
    let backup = Backup::new();
    let target = backup.path("old");
    volume::full_of_old_data(&target, MIB);
    backup.assert_refused(&target, &[], "target-not-empty");
    assert!(std::fs::read(&target).unwrap() == vec![volume::OLD; 1 << 20]);
    // An empty file holds nothing to lose.
    std::fs::write(&target, "").unwrap();
    backup.assert_restored(&target, &[]);
}

#[test]
fn the_image_is_not_its_own_target() {
    needs!("nbdkit");
    let backup = Backup::new();
    let before = std::fs::read(&backup.image).unwrap();
    let link = backup.path("link");
    std::os::unix::fs::symlink(&backup.image, &link).unwrap();
    for target in [&backup.image, &link] {
        backup.assert_refused(target, &["--force"], "output-is-source");
    }
    let stdin = File::open(&backup.image).unwrap();
    assert_failed(
        &restore_from("-", stdin, &backup.image, &["--force"]),
        1,
        "output-is-source",
    );
    assert!(std::fs::read(&backup.image).unwrap() == before);
}

#[test]
fn a_directory_is_no_target() {
    needs!("nbdkit");
    let backup = Backup::new();
    backup.assert_refused(backup.directory.path(), &["--force"], "target-unfit");
    backup.assert_refused(&backup.path("no/such/directory"), &[], "io");
}

#[test]
fn a_file_that_somebody_writes_is_refused() {
    needs!("nbdkit");
    let backup = Backup::new();
    let target = backup.path("in-use");
    volume::full_of_old_data(&target, MIB);
    let _user = File::options().write(true).open(&target).unwrap();
    backup.assert_refused(&target, &["--force"], "target-busy");
    assert!(std::fs::read(&target).unwrap() == vec![volume::OLD; 1 << 20]);
}

#[test]
fn an_image_on_stdin_is_restored() {
    needs!("nbdkit");
    let backup = Backup::new();
    let target = backup.path("restored");
    let output = restore_from("-", File::open(&backup.image).unwrap(), &target, &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_begins_with(&target, &backup.volume);
}

/// Interrupted while it waits for more of the image: nothing is left, and the exit code says that it failed.
#[test]
fn an_interrupted_restore_leaves_nothing() {
    needs!("nbdkit");
    let backup = Backup::new();
    let bytes = std::fs::read(&backup.image).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let target = backup.path("restored");
        let arguments = [
            "--error-format",
            "json",
            "restore",
            "-",
            "--output",
            target.to_str().unwrap(),
        ];
        let mut restore = program::start("proxy-client", &arguments, Stdio::piped());
        let mut stdin = restore.take_stdin();
        stdin.write_all(&bytes[..bytes.len() / 2]).unwrap();
        restore.wait_for(&backup.path("restored.partial"));
        restore.signal(signal);
        assert_failed(&restore.wait(), 1, "interrupted");
        image::assert_nothing_left(&target);
    }
}
