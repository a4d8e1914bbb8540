//! Kills at any moment.
//!
//! `RESUME_KILLS` says how many (20), `RESUME_SEED` repeats their moments.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_client::pipeline::Random;
use tests::needs_loop_devices;
use tests::program::error_object;

use super::{Scene, start};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Removes an image that cannot be resumed. Only one without a whole header may be such.
fn remove_headless(scene: &Scene) {
    let bytes = std::fs::read(scene.partial()).unwrap();
    // A skippable frame of zstd: magic, length.
    let length = bytes
        .get(4..8)
        .map(|field| u32::from_le_bytes(field.try_into().unwrap()));
    let is_whole = length.is_some_and(|length| bytes.len() >= 8 + length as usize);
    assert!(!is_whole, "the header of {} bytes is whole", bytes.len());
    std::fs::remove_file(scene.partial()).unwrap();
}

/// The backup is killed, resumed, killed again …, and ends with the root of one that never was.
#[test]
#[allow(clippy::print_stdout, reason = "the seed is part of the proof")]
fn killed_at_any_moment_it_ends_as_if_it_had_not_been() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let scene = Scene::new(24 << 20);
    let begun = Instant::now();
    let whole = start(&scene.backup()).wait();
    let duration = begun.elapsed();
    assert!(whole.status.success());
    let root = serde_json::from_slice::<serde_json::Value>(&whole.stdout).unwrap()["root"].clone();
    std::fs::remove_file(scene.image()).unwrap();

    let wanted = setting("RESUME_KILLS").unwrap_or(20);
    let seed = setting("RESUME_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("RESUME_SEED={seed} RESUME_KILLS={wanted}: a backup takes {duration:?}");
    let random = Random::of_a_seed(seed);
    let (mut kills, mut resumed, mut finished) = (0, 0, 0);
    while kills < wanted {
        if scene.image().exists() {
            // Killed after the commit and before the report.
            scene.assert_image_is_right();
            std::fs::remove_file(scene.image()).unwrap();
        }
        let unfinished = scene.partial().exists();
        let arguments = if unfinished {
            scene.resume(&[])
        } else {
            scene.backup()
        };
        let run = start(&arguments);
        // Some while it still connects, most while it reads and writes, some after its end.
        let limit = u64::try_from(duration.as_micros()).unwrap() / if kills % 3 == 0 { 8 } else { 1 };
        std::thread::sleep(Duration::from_micros(random.below(limit + 20_000)));
        run.signal(Signal::SIGKILL);
        let output = run.wait();
        resumed += u64::from(unfinished);
        match output.status.code() {
            None => kills += 1,
            Some(0) => {
                finished += 1;
                scene.assert_right(&output, root.as_str().unwrap());
                std::fs::remove_file(scene.image()).unwrap();
            }
            // Killed before there was a header.
            Some(6) if unfinished => {
                assert_eq!(error_object(&output)["kind"], "image-bad");
                remove_headless(&scene);
            }
            other => panic!("{other:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    if scene.image().exists() {
        scene.assert_image_is_right();
        std::fs::remove_file(scene.image()).unwrap();
    }
    let last = if scene.partial().exists() {
        start(&scene.resume(&[])).wait()
    } else {
        start(&scene.backup()).wait()
    };
    if last.status.code() == Some(6) {
        remove_headless(&scene);
        scene.assert_right(&start(&scene.backup()).wait(), root.as_str().unwrap());
    } else {
        scene.assert_right(&last, root.as_str().unwrap());
    }
    println!("{kills} kills, {resumed} resumed, {finished} finished before the kill");
    assert!(resumed > kills / 4, "most kills leave something to resume");
}
