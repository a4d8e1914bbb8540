//! A frozen set becomes images that belong together.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tests::disk::{Mounted, Scratch, scratch};
use tests::needs_loop_devices;
use tests::program::{Host, fails, proxy_client, run};
use tests::site::text;
use tests::volume::noise;

use crate::resume::run_up_to;

const SIZE: usize = 3 << 20;

/// A set of three files, frozen.
struct Scene {
    directory: Scratch,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let directory = scratch();
        for (seed, name) in (0..).zip(["a", "b", "c"]) {
            fs::write(directory.path().join(name), noise(seed, SIZE)).unwrap();
        }
        let host = Self::serve(&directory);
        Self { directory, host }
    }

    fn serve(directory: &Scratch) -> Host {
        let path = |name: &str| text(&directory.path().join(name)).to_owned();
        Host::serve(&[
            "--set",
            "db",
            "--files",
            &path("[abc]"),
            "--freeze",
            "quiesce",
            "--socket",
            &path("socket"),
            "--control",
            &path("control"),
        ])
    }

    /// Ends what is frozen, and freezes the set anew under the same name, when its volumes have been written to.
    fn freeze_anew(self) -> Self {
        let Self { directory, host } = self;
        assert!(host.terminate().success());
        for (seed, name) in (3..).zip(["a", "b", "c"]) {
            fs::write(directory.path().join(name), noise(seed, SIZE)).unwrap();
        }
        let host = Self::serve(&directory);
        Self { directory, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn uri(&self, name: &str) -> &str {
        self.host.uri(name)
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["backup", "--json", "--host-is-this-machine"], more].concat()
    }
}

#[test]
fn a_set_becomes_images_with_a_manifest_and_volumes_again() {
    let scene = Scene::new();
    let manifest = scene.path("mon.set.json");
    let whole = ["--set", "db", scene.uri("b"), "--output", text(&manifest)];
    let whole = scene.arguments(&whole);
    let told: Value = serde_json::from_str(&proxy_client(&whole)).unwrap();
    let written: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    assert_eq!(
        (&told["images"], &told["set"]),
        (&written["images"], &"db".into())
    );
    assert!(written["frozen_at"].is_string(), "{written}");
    let images = written["images"].as_array().unwrap();
    let frozen: std::collections::BTreeSet<_> =
        images.iter().map(|i| i["frozen"].as_str().unwrap()).collect();
    assert_eq!((images.len(), frozen.len()), (3, 3), "{written}");

    proxy_client(&["verify", text(&manifest)]);
    let restored = scene.path("restored");
    let restore = ["restore", text(&manifest), "--output", text(&restored)];
    proxy_client(&restore);
    for name in ["a", "b", "c"] {
        assert!(
            fs::read(restored.join(name)).unwrap() == fs::read(scene.path(name)).unwrap(),
            "{name}"
        );
    }
    fs::remove_dir_all(&restored).unwrap();

    // The URI may name the set, once.
    let by_uri = format!("{}&set=db", scene.uri("b"));
    let again = scene.path("again.set.json");
    let by_uri = scene.arguments(&[&by_uri, "--output", text(&again)]);
    let told: Value = serde_json::from_str(&proxy_client(&by_uri)).unwrap();
    assert_eq!(told["images"].as_array().unwrap().len(), 3, "{told}");
    let twice = [&by_uri[..], &["--set", "db"]].concat();
    assert_eq!(fails("proxy-client", 2, &twice)["kind"], "usage");

    // Images are not overwritten, and one in another's place is noticed before anything is restored.
    assert_eq!(fails("proxy-client", 1, &whole)["kind"], "output-exists");
    let image = |name: &str| scene.path(&format!("mon.{name}.vbi.zst"));
    fs::rename(image("a"), scene.path("kept")).unwrap();
    for bad in [Some(image("b")), None] {
        if let Some(other) = bad {
            fs::copy(other, image("a")).unwrap();
            assert_eq!(
                fails("proxy-client", 6, &["verify", text(&manifest)])["kind"],
                "image-bad"
            );
            assert_eq!(fails("proxy-client", 6, &restore)["kind"], "image-bad");
            fs::remove_file(image("a")).unwrap();
        } else {
            fails("proxy-client", 1, &restore);
        }
        assert!(!restored.exists());
    }
    fs::rename(scene.path("kept"), image("a")).unwrap();
    proxy_client(&["verify", text(&manifest)]);
}

#[test]
fn what_an_attempt_that_failed_has_finished_is_kept() {
    let scene = Scene::new();
    let manifest = scene.path("mon.set.json");
    let all = [
        scene.uri("a"),
        scene.uri("b"),
        scene.uri("c"),
        "--output",
        text(&manifest),
    ];
    let all = scene.arguments(&all);
    let image = |name: &str| scene.path(&format!("mon.{name}.vbi.zst"));
    // In the place of the second one.
    fs::write(image("b"), "precious").unwrap();
    fails("proxy-client", 6, &all);
    assert!(image("a").exists() && !image("c").exists());
    tests::image::assert_nothing_left(&manifest);
    assert_eq!(fs::read(image("b")).unwrap(), b"precious");
    fs::remove_file(image("b")).unwrap();
    let told: Value = serde_json::from_str(&proxy_client(&all)).unwrap();
    assert!(
        told["reports"][0].is_null() && told["reports"][1]["root"].is_string(),
        "{told}"
    );
    proxy_client(&["verify", text(&manifest)]);
}

#[test]
fn less_than_a_set_is_no_set() {
    let scene = Scene::new();
    let manifest = scene.path("mon.set.json");
    let two = [scene.uri("a"), scene.uri("b"), "--output", text(&manifest)];
    assert_eq!(
        fails("proxy-client", 1, &scene.arguments(&two))["kind"],
        "host-incompatible"
    );
    let none = [scene.uri("a"), "--set", "other", "--output", text(&manifest)];
    assert_eq!(
        fails("proxy-client", 1, &scene.arguments(&none))["kind"],
        "host-incompatible"
    );
    tests::image::assert_nothing_left(&manifest);
    let twice = [scene.uri("a"), scene.uri("a"), "--output", text(&manifest)];
    fails("proxy-client", 2, &scene.arguments(&twice));
}

/// Its writer was killed before it had its name, and the set was frozen anew after that.
#[test]
fn a_whole_image_of_another_instant_does_not_come_into_the_set() {
    let scene = Scene::new();
    let image = scene.path("mon.a.vbi.zst");
    proxy_client(&scene.arguments(&[scene.uri("a"), "--output", text(&image)]));
    let partial = scene.path("mon.a.vbi.zst.partial");
    fs::rename(&image, &partial).unwrap();
    let before = fs::read(&partial).unwrap();

    let scene = scene.freeze_anew();
    let manifest = scene.path("mon.set.json");
    let whole = ["--set", "db", scene.uri("b"), "--output", text(&manifest)];
    let whole = scene.arguments(&whole);
    assert_eq!(fails("proxy-client", 5, &whole)["kind"], "frozen-image-gone");
    tests::image::assert_nothing_left(&manifest);
    assert!(!image.exists() && fs::read(&partial).unwrap() == before);

    fs::remove_file(&partial).unwrap();
    proxy_client(&whole);
    let restored = scene.path("restored");
    proxy_client(&["restore", text(&manifest), "--output", text(&restored)]);
    for name in ["a", "b", "c"] {
        assert!(
            fs::read(restored.join(name)).unwrap() == fs::read(scene.path(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn halves_of_two_sets_of_one_name_are_no_set() {
    let (one, two) = (Scene::new(), Scene::new());
    let manifest = one.path("mon.set.json");
    let mixed = [
        one.uri("a"),
        one.uri("b"),
        two.uri("c"),
        "--output",
        text(&manifest),
    ];
    fails("proxy-client", 2, &one.arguments(&mixed));
    tests::image::assert_nothing_left(&manifest);
}

/// The LUN was taken away from the job, say: what the image remembers of it does not count.
#[test]
fn what_was_begun_goes_on_with_what_the_command_says_now() {
    needs_loop_devices!("mkfs.xfs");
    let disk = Mounted::xfs(512 << 20);
    for (seed, name) in (0..).zip(["a", "b"]) {
        let file = fs::File::create(disk.path.join(name)).unwrap();
        std::io::Write::write_all(
            &mut &file,
            &noise(seed, if name == "a" { 48 << 20 } else { SIZE }),
        )
        .unwrap();
        file.sync_all().unwrap();
    }
    let path = |name: &str| disk.outside().join(name);
    let (socket, control, manifest) = (path("socket"), path("control"), path("mon.set.json"));
    let (partial, kept) = (path("mon.a.vbi.zst.partial"), path("kept"));
    let host = Host::serve(&[
        "--set",
        "db",
        "--files",
        &format!("{}/[ab]", disk.path.display()),
        "--identity",
        &format!("{}=lun0", disk.disk.device.display()),
        "--socket",
        text(&socket),
        "--control",
        text(&control),
    ]);
    let again = [
        "backup",
        "--json",
        "--host-is-this-machine",
        "--checkpoint-every",
        "1M",
        host.uri("a"),
        host.uri("b"),
        "--output",
        text(&manifest),
    ];
    let lun = format!("lun0={}", disk.disk.lun.display());
    let first = [&again[..], &["--lun", &lun]].concat();
    run_up_to(
        36 << 20,
        &first.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    fs::copy(&partial, &kept).unwrap();
    fails("proxy-client", 4, &[&again[..], &["--no-fallback"]].concat());

    fs::copy(&kept, &partial).unwrap();
    // The image was begun without this one, and cannot name it.
    let unknown = format!("lun7={}", disk.disk.lun.display());
    let output = run("proxy-client", &[&again[..], &["--lun", &unknown]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains(&unknown), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = |kind: &str| told["reports"][0][kind].as_u64().unwrap();
    assert!(bytes("bytes_direct") > 0 && bytes("bytes_nbd") > 0, "{told}");
    let restored = path("restored");
    proxy_client(&["restore", text(&manifest), "--output", text(&restored)]);
    for name in ["a", "b"] {
        assert!(
            fs::read(restored.join(name)).unwrap() == fs::read(disk.path.join(name)).unwrap(),
            "{name}"
        );
    }
}
