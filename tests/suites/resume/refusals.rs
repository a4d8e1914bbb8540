//! What is not resumed, and why.

use std::time::{Duration, SystemTime};

use tests::needs_loop_devices;
use tests::program::{error_object, fails};
use tests::site::text;

use super::{Scene, run_up_to, start};

/// An image that a kill left unfinished, with checkpoints.
fn killed() -> Scene {
    let scene = Scene::new(96 << 20);
    run_up_to(40 << 20, &scene.backup());
    assert_eq!(std::fs::metadata(scene.partial()).unwrap().len(), 40 << 20);
    scene
}

/// Law P5: another frozen image of the same volume, with the very same bytes, is another image.
#[test]
fn another_frozen_image_is_refused() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let mut scene = killed();
    let before = std::fs::read(scene.partial()).unwrap();
    scene.site.take_host().terminate();
    scene.site.serve(&[]);
    let output = start(&scene.resume(&[])).wait();
    let error = error_object(&output);
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert_eq!(error["kind"], "frozen-image-gone");
    assert!(
        error["message"].as_str().unwrap().contains("new backup"),
        "{error}"
    );
    assert!(
        std::fs::read(scene.partial()).unwrap() == before,
        "the file was changed"
    );
    assert!(!scene.image().exists());
}

#[test]
fn what_is_written_or_finished_or_nothing_is_not_resumed() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let scene = killed();
    let (image, partial) = (scene.image(), scene.partial());
    // Somebody else has it.
    let held = std::fs::File::open(&partial).unwrap();
    held.try_lock().unwrap();
    let error = error_object(&start(&scene.resume(&[])).wait());
    assert_eq!(error["kind"], "output-exists", "{error}");
    drop(held);
    assert!(partial.exists());

    // It was finished meanwhile.
    std::fs::write(&image, "precious").unwrap();
    assert_eq!(
        fails("proxy-client", 1, &["resume", text(&image)])["kind"],
        "output-exists"
    );
    assert_eq!(std::fs::read(&image).unwrap(), b"precious");
    std::fs::remove_file(&image).unwrap();

    // There is nothing in it, or nothing of ours.
    for content in [
        "",
        "something else, and more of it than a frame has in its header",
    ] {
        std::fs::write(&partial, content).unwrap();
        assert_eq!(
            fails("proxy-client", 6, &["resume", text(&image)])["kind"],
            "image-bad"
        );
        assert_eq!(std::fs::read(&partial).unwrap(), content.as_bytes());
    }
    std::fs::remove_file(&partial).unwrap();
    assert_eq!(fails("proxy-client", 1, &["resume", text(&image)])["kind"], "io");
}

/// Whole, but without its name: a rename was all that was missing.
#[test]
fn a_whole_image_gets_its_name() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let scene = Scene::new(1 << 20);
    let whole = start(&scene.backup()).wait();
    let report: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    std::fs::rename(scene.image(), scene.partial()).unwrap();
    let root = report["root"].as_str().unwrap();
    // Its writer may have ended because the medium refused it: what the page cache says is not enough.
    let partial = std::fs::File::options()
        .write(true)
        .open(scene.partial())
        .unwrap();
    partial.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    scene.assert_right(&start(&scene.resume(&[])).wait(), root);
    let age = partial.metadata().unwrap().modified().unwrap().elapsed().unwrap();
    assert!(
        age < Duration::from_secs(3600),
        "what is behind the last checkpoint was not written again"
    );
}

/// What would have been the exit code of the backup is that of the resumption too.
#[test]
fn a_whole_image_is_held_to_what_the_backup_was_told() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let scene = Scene::new(1 << 20);
    let mut arguments = scene.backup();
    let at = arguments.iter().position(|a| a == "--lun").unwrap();
    arguments.splice(at..at + 2, ["--require-direct", "50"].map(str::to_owned));
    assert_eq!(start(&arguments).wait().status.code(), Some(4));
    for (more, code) in [(&[][..], 4), (&["--require-direct", "0"], 0)] {
        std::fs::rename(scene.image(), scene.partial()).unwrap();
        assert_eq!(
            start(&scene.resume(more)).wait().status.code(),
            Some(code),
            "{more:?}"
        );
        assert_eq!(scene.site.image_digest(), scene.site.original);
    }
}

/// Hours of work are not replaced unasked, nor is anything for a host that does not answer.
#[test]
fn what_can_be_resumed_is_not_begun_anew() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let scene = killed();
    let before = std::fs::read(scene.partial()).unwrap();
    let again = start(&scene.backup()).wait();
    let error = error_object(&again);
    assert_eq!(
        (again.status.code(), &error["kind"]),
        (Some(1), &"output-exists".into())
    );
    assert!(
        error["message"].as_str().unwrap().contains("proxy-client resume"),
        "{error}"
    );
    assert!(
        std::fs::read(scene.partial()).unwrap() == before,
        "the file was changed"
    );

    std::fs::write(scene.partial(), "left by the dead").unwrap();
    let nowhere = scene.backup_of("nbd+unix:///vm?socket=/nonexistent/socket");
    assert_eq!(error_object(&start(&nowhere).wait())["kind"], "host-lost");
    assert_eq!(std::fs::read(scene.partial()).unwrap(), b"left by the dead");
    assert!(start(&scene.backup()).wait().status.success());
    assert!(!scene.partial().exists());
}

/// A LUN is where it was, or where `--lun` says; another one is not added.
#[test]
fn luns_are_those_of_the_backup() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let scene = killed();
    let lun = scene.site.disk.disk.lun.clone();
    let stranger = format!("lun9={}", lun.display());
    let mut arguments = scene.resume(&["--lun", &stranger]);
    let refused = start(&arguments).wait();
    assert_eq!(error_object(&refused)["kind"], "usage");

    // Another disk is found out by samples, and the unfinished image stays.
    let other = lun.with_extension("other");
    std::fs::File::create(&other).unwrap().set_len(1 << 30).unwrap();
    arguments = scene.resume(&["--lun", &format!("lun0={}", other.display())]);
    let wrong = start(&arguments).wait();
    assert_eq!(error_object(&wrong)["kind"], "wrong-lun");
    assert!(scene.partial().exists());
    std::fs::remove_file(&other).unwrap();
}
