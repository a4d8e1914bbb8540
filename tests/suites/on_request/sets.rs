//! A set that clients have frozen: one instant, one export each, and one end.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::disk::{Scratch, scratch};
use tests::needs;
use tests::program::{Host, fails, nbd_export, proxy_client};
use tests::site::text;
use tests::volume::noise;

use super::run;
use crate::resume::run_up_to;

const NEW: &str = "db@new";

const VOLUMES: [(&str, usize); 3] = [("a", 3 << 20), ("b", 24 << 20), ("c", 3 << 20)];

/// An agent with a set of three files that clients may have frozen.
struct Scene {
    directory: Scratch,
    _host: Host,
}

impl Scene {
    /// The agent is told `lines` of the set, and `tables` beside it.
    fn new(lines: &str, tables: &str) -> Self {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name);
        for (seed, (name, size)) in (0..).zip(VOLUMES) {
            fs::write(path(name), noise(seed, size)).unwrap();
        }
        let config = format!(
            "[listen]\nsocket = [{:?}]\ncontrol = {:?}\n[set.db]\nfiles = [{:?}]\nfreeze = \"quiesce\"\n\
             freeze-on-request = true\n{lines}\n{tables}\n",
            path("socket"),
            path("control"),
            path("[abc]"),
        );
        fs::write(path("agent.toml"), config).unwrap();
        let host = Host::serve(&["--config", text(&path("agent.toml"))]);
        Self {
            directory,
            _host: host,
        }
    }

    /// One that may be asked as often as a test likes.
    fn eager() -> Self {
        Self::new("", "[on-request]\nevery = 0")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("socket").display())
    }

    fn manifest(&self) -> PathBuf {
        self.path("mon.set.json")
    }

    /// The backup of a set that the host is to freeze for it.
    fn backup(&self) -> Vec<String> {
        self.backup_to("mon.set.json")
    }

    fn backup_to(&self, manifest: &str) -> Vec<String> {
        let (uri, manifest) = (format!("{}&set={NEW}", self.uri("")), self.path(manifest));
        let arguments = [
            "backup",
            "--json",
            "--host-is-this-machine",
            "--checkpoint-every",
            "1M",
            &uri,
            "--output",
            text(&manifest),
        ];
        arguments.map(str::to_owned).to_vec()
    }

    fn backed_up(&self) -> Value {
        let arguments = self.backup();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        serde_json::from_str(&proxy_client(&arguments)).unwrap()
    }

    fn refused(&self, code: i32) -> String {
        let arguments = self.backup();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let error = fails("proxy-client", code, &arguments);
        error["kind"].as_str().unwrap().to_owned()
    }

    fn control(&self, arguments: &[&str]) -> Value {
        let control = self.path("control");
        let to = ["--json", "--control", text(&control)];
        serde_json::from_str(&nbd_export(&[arguments, &to].concat())).unwrap()
    }

    /// The frozen images that there are.
    fn frozen(&self) -> Vec<Value> {
        let listed = self.control(&["list"]);
        let volumes = listed["volumes"].as_array().unwrap().iter();
        volumes
            .flat_map(|volume| volume["frozen"].as_array().unwrap().clone())
            .collect()
    }

    /// The frozen sets of which there is anything.
    fn sets(&self) -> BTreeSet<String> {
        let frozen = self.frozen();
        let sets = frozen.iter().map(|image| image["set"]["name"].as_str().unwrap());
        sets.map(str::to_owned).collect()
    }

    fn wait_until_thawed(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.frozen().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.frozen());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn assert_restores(&self) {
        let (manifest, restored) = (self.manifest(), self.path("restored"));
        proxy_client(&["verify", text(&manifest)]);
        proxy_client(&["restore", text(&manifest), "--output", text(&restored)]);
        for (name, _) in VOLUMES {
            assert!(
                fs::read(restored.join(name)).unwrap() == fs::read(self.path(name)).unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn a_set_is_frozen_for_the_backup_that_asks_for_it() {
    let scene = Scene::eager();
    let told = scene.backed_up();
    let sets = scene.sets();
    assert_eq!(sets.len(), 1, "{sets:?}");
    assert_eq!(told["set"].as_str(), sets.first().map(String::as_str), "{told}");
    let frozen: BTreeSet<_> = scene
        .frozen()
        .iter()
        .map(|image| image["uuid"].as_str().unwrap().to_owned())
        .collect();
    let images = told["images"].as_array().unwrap().iter();
    let backed_up: BTreeSet<_> = images
        .map(|image| image["frozen"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((backed_up.len(), backed_up), (3, frozen), "{told}");
    scene.assert_restores();
    // Nothing is frozen for an output that is there.
    assert_eq!(scene.refused(1), "output-exists");
    assert_eq!(scene.sets(), sets);
}

#[test]
fn a_backup_that_was_killed_goes_on_with_the_set_that_was_made_for_it() {
    needs!("prlimit");
    let scene = Scene::eager();
    run_up_to(16 << 20, &scene.backup());
    let sets = scene.sets();
    let told = scene.backed_up();
    assert!(
        told["reports"][0].is_null() && told["reports"][1]["root"].is_string(),
        "{told}"
    );
    assert_eq!(
        (told["set"].as_str(), sets.len()),
        (sets.first().map(String::as_str), 1)
    );
    assert_eq!(scene.sets(), sets, "no other was made");
    scene.assert_restores();
}

#[test]
fn a_set_that_is_gone_is_told_and_nothing_is_made_of_two() {
    needs!("prlimit");
    let scene = Scene::eager();
    run_up_to(16 << 20, &scene.backup());
    for set in scene.sets() {
        scene.control(&["thaw", &set]);
    }
    assert_eq!(scene.refused(5), "frozen-image-gone");
    assert_eq!(scene.frozen(), [] as [Value; 0], "none is made in its place");
    for left in ["mon.a.vbi.zst", "mon.b.vbi.zst.partial"] {
        fs::remove_file(scene.path(left)).unwrap();
    }
    scene.backed_up();
    scene.assert_restores();
}

#[test]
fn images_of_another_manifest_are_no_earlier_attempt() {
    let scene = Scene::eager();
    let night = scene.backup_to("mon.night.set.json");
    let night: Vec<&str> = night.iter().map(String::as_str).collect();
    let night: Value = serde_json::from_str(&proxy_client(&night)).unwrap();
    let told = scene.backed_up();
    assert_ne!(told["set"], night["set"], "it is of an instant of its own");
    let sets = scene.sets();
    assert_eq!(sets.len(), 2);
    scene.assert_restores();
    // The images of this one would have the names of those.
    let alike = scene.backup_to("mon.json");
    let alike: Vec<&str> = alike.iter().map(String::as_str).collect();
    let error = fails("proxy-client", 1, &alike);
    assert_eq!(error["kind"], "output-exists", "{error}");
    assert!(!scene.path("mon.json").exists());
    assert_eq!(scene.sets(), sets, "nothing is frozen for it");
}

/// They have nothing to read there, and must not take that for a good copy.
#[test]
fn who_takes_a_set_for_a_volume_fails() {
    needs!("nbdinfo", "nbdcopy", "qemu-img");
    let scene = Scene::eager();
    let (uri, copy) = (scene.uri(NEW), scene.path("copy"));
    for (program, arguments) in [
        ("nbdcopy", &[&uri, text(&copy)][..]),
        (
            "qemu-img",
            &["convert", "-f", "raw", "-O", "raw", &uri, text(&copy)],
        ),
    ] {
        let output = run(program, arguments);
        assert!(!output.status.success(), "{program}: {output:?}");
        for set in scene.sets() {
            scene.control(&["thaw", &set]);
        }
    }
    let image = scene.path("image");
    let single = ["backup", &uri, "--host-is-this-machine", "--output", text(&image)];
    assert_eq!(fails("proxy-client", 2, &single)["kind"], "usage");
    tests::image::assert_nothing_left(&image);
    // No member is offered alone, and nothing is listed.
    let member = run("nbdinfo", &["--size", &scene.uri("a@new")]);
    assert!(!member.status.success(), "{member:?}");
    let listed = run("nbdinfo", &["--list", "--no-content", &scene.uri("")]);
    assert!(
        !String::from_utf8_lossy(&listed.stdout).contains(NEW),
        "{listed:?}"
    );
}

#[test]
fn who_may_not_have_its_volumes_has_no_set_frozen() {
    needs!("nbdinfo");
    let scene = Scene::new("allow = [\"10.0.0.1\"]", "");
    assert_eq!(scene.refused(1), "host-refused");
    assert!(!run("nbdinfo", &["--size", &scene.uri(NEW)]).status.success());
    assert_eq!(scene.frozen(), [] as [Value; 0]);
}

#[test]
fn a_set_is_kept_while_any_of_it_is_read_and_ends_as_a_whole() {
    needs!("nbdsh");
    let scene = Scene::new("", "[on-request]\nevery = 0\nhold = 12\nmost = 1");
    let (socket, control) = (scene.path("socket"), scene.path("control"));
    // It has the set made, goes on to a member of it, and then reads nothing for longer than the hold.
    let script = format!(
        "import json, subprocess, time\n\
         h.set_uri_allow_transports(nbd.ALLOW_TRANSPORT_UNIX)\n\
         h.connect_uri({:?})\n\
         time.sleep(15)\n\
         listed = json.loads(subprocess.check_output([{:?}, 'list', '--json', '--control', {:?}]))\n\
         frozen = [image['export'] for volume in listed['volumes'] for image in volume['frozen']]\n\
         assert len(frozen) == 3, frozen\n\
         m = nbd.NBD()\n\
         m.connect_uri('nbd+unix:///' + frozen[0] + '?socket=' + {:?})\n\
         h.shutdown()\n\
         time.sleep(15)\n\
         assert len(m.pread(4096, 0)) == 4096\n\
         m.shutdown()\n",
        scene.uri(NEW),
        tests::program::built("nbd-export"),
        control,
        text(&socket),
    );
    let output = std::process::Command::new("timeout")
        .args(["120", "nbdsh", "-c", &script])
        // The module belongs to Debian's Python, and nbdsh takes the first that it finds.
        .env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!((scene.frozen().len(), scene.sets().len()), (3, 1));
    assert_eq!(scene.refused(1), "host-refused", "there may be one at a time");
    scene.wait_until_thawed();
    scene.backed_up();
    scene.assert_restores();
}
