//! Origins: what is written to one after another through the agent, and what becomes of the set.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proxy_client::nbd::Connection;
use serde_json::Value;
use tests::disk::{Scratch, scratch};
use tests::program::{Host, fails, nbd_export, proxy_client, run};
use tests::site::text;
use tests::volume::noise;
use tokio::runtime::Runtime;

use super::frozen_of;

const SIZE: usize = 4 << 20;
const ORIGINS: [&str; 3] = ["a", "b", "c"];

/// Three origins, and a file that nobody writes to, in one set.
struct Scene {
    directory: Scratch,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let directory = scratch();
        let path = |name: &str| text(&directory.path().join(name)).to_owned();
        let mut arguments = vec!["--set".to_owned(), "db".to_owned(), "--set-origin".to_owned()];
        arguments.extend(ORIGINS.map(ToOwned::to_owned));
        for (seed, name) in (0..).zip(ORIGINS) {
            let mut bytes = noise(seed, SIZE);
            bytes[..4096].fill(0);
            fs::write(path(name), bytes).unwrap();
            arguments.extend(["--origin".to_owned(), format!("{name}={}", path(name))]);
            arguments.extend(["--copy-area".to_owned(), format!("{}.old,size=8M", path(name))]);
        }
        fs::write(path("log"), noise(9, SIZE)).unwrap();
        arguments.extend(["--files".to_owned(), path("log")]);
        for (option, name) in [("--socket", "socket"), ("--control", "control")] {
            arguments.extend([option.to_owned(), path(name)]);
        }
        arguments.extend(["--freeze".to_owned(), "quiesce".to_owned()]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let host = Host::serve(&arguments);
        Self { directory, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let control = self.path("control");
        nbd_export(&[arguments, &["--control", text(&control)]].concat())
    }

    /// Freezes the set, while others write. A machine that stands still for the deadline fails a freeze, and that is no matter here.
    fn freeze_as_now(&self) {
        let control = self.path("control");
        let arguments = ["freeze", "db", "--as", "now", "--control", text(&control)];
        let freeze = || {
            let frozen = run("nbd-export", &arguments);
            let why = String::from_utf8_lossy(&frozen.stderr).into_owned();
            assert!(
                frozen.status.success() || why.contains("after 10 s") || why.contains("for 10 s at most"),
                "{why}"
            );
            frozen.status.success()
        };
        assert!((0..3).any(|_| freeze()), "it is never still");
    }

    fn content(&self, export: &str) -> Vec<u8> {
        let uri = format!("nbd+unix:///{export}?socket={}", self.path("socket").display());
        let copy = self.path("copy");
        proxy_client(&["copy", &uri, text(&copy)]);
        let bytes = fs::read(&copy).unwrap();
        fs::remove_file(&copy).unwrap();
        bytes
    }
}

/// Stops the writers when it is dropped: a failed assertion must not leave them running.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// For every two origins, in either order, and where each writer counts.
fn pairs() -> impl Iterator<Item = (&'static str, &'static str, usize)> {
    let pairs = [
        ("a", "b"),
        ("b", "a"),
        ("a", "c"),
        ("c", "a"),
        ("b", "c"),
        ("c", "b"),
    ];
    (0..)
        .step_by(512)
        .zip(pairs)
        .map(|(at, (first, then))| (first, then, at))
}

/// Counts in one origin and then in another, each count replied to before the next is sent.
fn count(runtime: &Runtime, [first, then]: [&str; 2], at: usize, go_on: &AtomicBool) {
    let connect = |uri: &str| {
        let uri = uri.parse().unwrap();
        runtime.block_on(Connection::connect(&uri, Vec::new())).unwrap()
    };
    let origins = [connect(first), connect(then)];
    for number in (1_u64..).take_while(|_| go_on.load(Ordering::Relaxed)) {
        for origin in &origins {
            let bytes = number.to_le_bytes().repeat(64).into();
            runtime.block_on(origin.write(at as u64, bytes, false)).unwrap();
        }
    }
}

#[test]
fn what_is_written_to_one_origin_after_another_is_backed_up_as_of_one_instant() {
    let scene = Scene::new();
    let runtime = Runtime::new().unwrap();
    let go_on = AtomicBool::new(true);
    let live = |name: &str| format!("nbd+unix:///{name}?socket={}", scene.path("socket").display());
    let last = thread::scope(|scope| {
        let _stop = Stop(&go_on);
        for (first, then, at) in pairs() {
            let (runtime, go_on, uris) = (&runtime, &go_on, [live(first), live(then)]);
            scope.spawn(move || count(runtime, [&uris[0], &uris[1]], at, go_on));
        }
        let mut last = BTreeMap::new();
        for round in 0..8 {
            scene.freeze_as_now();
            let contents: BTreeMap<&str, Vec<u8>> = ORIGINS
                .map(|name| (name, scene.content(&format!("{name}@now"))))
                .into();
            for (first, then, at) in pairs() {
                let number = |name: &str| u64::from_le_bytes(contents[name][at..at + 8].try_into().unwrap());
                let (before, after) = (number(first), number(then));
                assert!(
                    after <= before && before <= after + 1,
                    "round {round}: {first} has {before}, and {then} {after}"
                );
                assert!(round < 7 || after > 0, "nobody counts");
            }
            for name in ORIGINS {
                let about = frozen_of(text(&scene.path("control")), &format!("{name}@now"));
                let set = &about["set"];
                assert_eq!(
                    (&about["method"], &set["held_by"], &set["members"]),
                    (&"cow".into(), &"agent".into(), &4.into()),
                    "{about}"
                );
                assert!(set["window_ms"].as_u64().unwrap() < 10_000, "{about}");
            }
            last = contents;
            if round < 7 {
                scene.ask(&["thaw", "db@now"]);
            }
        }
        last
    });

    let manifest = scene.path("mon.set.json");
    let uri = format!(
        "nbd+unix:///?socket={}&set=db@now",
        scene.path("socket").display()
    );
    proxy_client(&[
        "backup",
        "--host-is-this-machine",
        &uri,
        "--output",
        text(&manifest),
    ]);
    let written: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    assert_eq!(
        (&written["set"], written["images"].as_array().unwrap().len()),
        (&"db@now".into(), 4)
    );
    let restored = scene.path("restored");
    proxy_client(&["restore", text(&manifest), "--output", text(&restored)]);
    for name in ORIGINS {
        assert!(fs::read(restored.join(name)).unwrap() == last[name], "{name}");
    }
    assert!(fs::read(restored.join("log")).unwrap() == noise(9, SIZE));
    assert!(scene.host.terminate().success());
}

#[test]
fn a_file_that_has_a_writer_costs_the_set_and_no_origin_waits() {
    let scene = Scene::new();
    let writer = fs::File::options().write(true).open(scene.path("log")).unwrap();
    let control = scene.path("control");
    let refused = fails("nbd-export", 1, &["freeze", "db", "--control", text(&control)]);
    assert_eq!(refused["kind"], "freeze");
    let runtime = Runtime::new().unwrap();
    for name in ORIGINS {
        let uri = format!("nbd+unix:///{name}?socket={}", scene.path("socket").display());
        let uri = uri.parse().unwrap();
        let origin = runtime.block_on(Connection::connect(&uri, Vec::new())).unwrap();
        runtime
            .block_on(origin.write(0, vec![1; 4096].into(), true))
            .unwrap();
    }
    let listing: Value = serde_json::from_str(&scene.ask(&["list", "--json"])).unwrap();
    for volume in listing["volumes"].as_array().unwrap() {
        assert_eq!(volume["frozen"], Value::Array(Vec::new()), "{listing}");
        if volume["kind"] == "origin" {
            assert_eq!(volume["copy_area"]["used"], 0, "{listing}");
        }
    }
    drop(writer);
    scene.ask(&["freeze", "db", "--as", "now"]);
    // By itself, beside the others.
    scene.ask(&["freeze", "a", "--as", "now2"]);
}
