//! Backups that fail or are stopped, and say what is left.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use tests::cutting_proxy::{Cut, CuttingProxy};
use tests::needs_loop_devices;
use tests::program::error_object;
use tests::site::VOLUME;

use super::{Scene, Stalling, start, wait_for_checkpoints};

fn root_of(scene: &Scene) -> String {
    let whole = start(&scene.backup()).wait();
    std::fs::remove_file(scene.image()).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    report["root"].as_str().unwrap().to_owned()
}

#[test]
fn interrupted_it_says_how_to_go_on() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let scene = Scene::new(96 << 20);
    let root = root_of(&scene);
    let stalling = Stalling::new(&scene);
    let mut backup = start(&stalling.backup(&scene));
    wait_for_checkpoints(&mut backup, &scene.partial());
    backup.signal(Signal::SIGINT);
    let output = backup.wait();
    let error = error_object(&output);
    assert_eq!(
        (output.status.code(), &error["kind"]),
        (Some(1), &"interrupted".into())
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("proxy-client resume"), "{message}");

    // By the other name.
    let uri = scene.site.uri(VOLUME);
    let mut arguments = scene.resume(&["--uri", &uri, "--limit-rate", "40M"]);
    arguments[3].push_str(".partial");
    let begun = std::time::Instant::now();
    scene.assert_right(&start(&arguments).wait(), &root);
    // More than 100 MiB were left to be read.
    assert!(begun.elapsed() > std::time::Duration::from_secs(2));
}

/// What was to be kept is kept, and what was not is not.
#[test]
fn discarded_it_leaves_nothing() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let scene = Scene::new(96 << 20);
    let stalling = Stalling::new(&scene);
    let mut arguments = stalling.backup(&scene);
    let at = arguments.iter().position(|a| a == "--checkpoint-every").unwrap();
    arguments.splice(at..at + 2, ["--discard-partial".to_owned()]);
    let mut backup = start(&arguments);
    wait_for_checkpoints(&mut backup, &scene.partial());
    backup.signal(Signal::SIGINT);
    assert_eq!(error_object(&backup.wait())["kind"], "interrupted");
    tests::image::assert_nothing_left(&scene.image());
}

/// The network goes for good in the middle, and the host is elsewhere when it is resumed.
#[test]
fn the_host_is_lost_and_found_elsewhere() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let scene = Scene::new(96 << 20);
    let root = root_of(&scene);
    // In the midst of the data, and nobody answers there any more.
    let cut = Cut {
        connection: 1,
        after: 40 << 20,
    };
    let door = Arc::new(Mutex::new(PathBuf::new()));
    let closed = Arc::clone(&door);
    let way = CuttingProxy::with_action(&scene.site.socket(), cut, move || {
        std::fs::remove_file(&*closed.lock().unwrap()).unwrap();
    });
    let uri = way.uri(VOLUME);
    *door.lock().unwrap() = uri.split_once("socket=").unwrap().1.into();
    let mut arguments = scene.backup_of(&uri);
    let at = arguments.iter().position(|a| a == "--lun").unwrap();
    arguments.drain(at..at + 2);
    arguments.extend(["--connections", "1", "--reconnect", "5"].map(Into::into));
    let output = start(&arguments).wait();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_object(&output)["kind"], "host-lost");
    let message = error_object(&output)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("proxy-client resume"), "{message}");
    let uri = scene.site.uri(VOLUME);
    scene.assert_right(&start(&scene.resume(&["--uri", &uri])).wait(), &root);
}
