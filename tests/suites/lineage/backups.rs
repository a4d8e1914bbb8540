//! Incremental backups, and chains of them: as good as full ones, or refused.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::disk::{LoopDisk, Mounted, run, scratch};
use tests::peer::Peer;
use tests::program::{Host, backup, fails, proxy_client};
use tests::site::text;
use tests::{needs, needs_loop_devices, volume};

use super::origin::{Origin, write};
use super::{Agent, Frozen, MIB, VOLUME, filled};
use crate::resume::run_up_to;

pub(super) const LEAF: u64 = 64 << 10;

/// A host that keeps clones, a volume on it, and its images.
pub(super) struct Scene {
    pub(super) agent: Agent,
    volume: PathBuf,
    disk: Mounted,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::of(8 * MIB + 100)
    }

    pub(super) fn of(size: u64) -> Self {
        let disk = Mounted::xfs(320 << 20);
        let volume = disk.path.join("vm.img");
        filled(&volume, size);
        let agent = serve(&volume);
        Self { agent, volume, disk }
    }

    /// A host that tells where everything lies, and how a proxy reads there.
    pub(super) fn with_lun(size: u64) -> (Self, String) {
        let scene = Self::of(size);
        assert!(scene.agent.host.terminate().success());
        let Self { volume, disk, .. } = scene;
        let volume_argument = format!("{VOLUME}={}", volume.display());
        let identity = format!("{}=lun0", disk.disk.device.display());
        let agent = Agent::serve(&[
            &volume_argument,
            "--keep-for-incremental",
            "--identity",
            &identity,
        ]);
        let lun = format!("id:lun0={}", disk.disk.lun.display());
        (Self { agent, volume, disk }, lun)
    }

    pub(super) fn live(&self) -> File {
        File::options().write(true).open(&self.volume).unwrap()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.disk.outside().join(name)
    }

    /// The image of a frozen image, over others if it has a parent.
    pub(super) fn back_up(&self, frozen: &Frozen, name: &str, more: &[&str]) -> Value {
        let (uri, path) = (self.agent.uri(&frozen.export), self.path(name));
        backup(&[&[&uri, "--output", text(&path)], more].concat())
    }

    /// The image has the root of a full one, which is made for this, and restores to what was frozen.
    pub(super) fn assert_as_good_as_full(&self, frozen: &Frozen, name: &str, report: &Value) {
        let full = self.back_up(frozen, "full", &[]);
        assert_eq!(report["root"], full["root"], "{report}");
        std::fs::remove_file(self.path("full")).unwrap();
        let image = self.path(name);
        proxy_client(&["verify", text(&image)]);
        let restored = self.path("restored");
        proxy_client(&["restore", text(&image), "--output", text(&restored)]);
        assert!(std::fs::read(&restored).unwrap() == frozen.bytes, "{name}");
        std::fs::remove_file(&restored).unwrap();
    }
}

fn serve(volume: &Path) -> Agent {
    let volume = format!("{VOLUME}={}", volume.display());
    Agent::serve(&[&volume, "--keep-for-incremental"])
}

pub(super) fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap()
}

#[test]
fn a_chain_is_as_good_as_a_full_backup() {
    needs_loop_devices!("mkfs.xfs");
    let scene = Scene::new();
    let (agent, live) = (&scene.agent, scene.live());
    let mon = agent.freeze("mon");
    scene.back_up(&mon, "mon", &[]);
    agent.thaw(&mon, &[]);
    let parent = |name: &str| scene.path(name);

    // A write, one that brings old content back, and one in place of what is read elsewhere.
    live.write_all_at(&[7; 4096], 5 * MIB).unwrap();
    live.write_all_at(&mon.bytes[..65_536], 0).unwrap();
    live.write_all_at(&[8; 10], MIB + 4095).unwrap();
    let tue = agent.freeze("tue");
    let report = scene.back_up(&tue, "tue", &["--parent", text(&parent("mon"))]);
    assert_eq!(report["parent"], *mon.uuid);
    assert_eq!(
        number(&report, "bytes_same"),
        8 * MIB + 100 - LEAF - 3 * 4096,
        "{report}"
    );
    scene.assert_as_good_as_full(&tue, "tue", &report);
    agent.thaw(&tue, &[]);

    // Trimmed, and longer.
    nix::fcntl::fallocate(
        &live,
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        2 << 20,
        1 << 20,
    )
    .unwrap();
    live.set_len(9 * MIB + 5).unwrap();
    let wed = agent.freeze("wed");
    let report = scene.back_up(&wed, "wed", &["--parent", text(&parent("tue"))]);
    assert_eq!(report["parent"], *tue.uuid);
    scene.assert_as_good_as_full(&wed, "wed", &report);
    agent.thaw(&wed, &[]);

    // Shorter, and otherwise untouched.
    live.set_len(7 * MIB + 77).unwrap();
    let thu = agent.freeze("thu");
    let report = scene.back_up(&thu, "thu", &["--parent", text(&parent("wed"))]);
    assert_eq!(number(&report, "bytes_same"), 7 * MIB, "{report}");
    scene.assert_as_good_as_full(&thu, "thu", &report);
    let inspected: Value =
        serde_json::from_str(&proxy_client(&["inspect", "--json", text(&parent("thu"))])).unwrap();
    assert_eq!(inspected["parent"]["frozen"], *wed.uuid);

    // Elsewhere, its parents are named, in any order.
    std::fs::create_dir(parent("elsewhere")).unwrap();
    let moved = parent("elsewhere").join("thu");
    std::fs::rename(parent("thu"), &moved).unwrap();
    fails("proxy-client", 6, &["verify", text(&moved)]);
    let parents = ["tue", "mon", "wed"].map(parent);
    let mut arguments = vec!["verify", text(&moved)];
    for path in &parents {
        arguments.extend(["--parent", text(path)]);
    }
    proxy_client(&arguments);
}

#[test]
fn a_chain_with_a_bad_or_missing_image_is_refused() {
    needs_loop_devices!("mkfs.xfs");
    let scene = Scene::new();
    let agent = &scene.agent;
    let mon = agent.freeze("mon");
    let first = scene.back_up(&mon, "mon", &[]);
    agent.thaw(&mon, &[]);
    scene.live().write_all_at(&[7; 4096], 5 * MIB).unwrap();
    let tue = agent.freeze("tue");
    let (parent, image) = (scene.path("mon"), scene.path("tue"));
    let report = scene.back_up(&tue, "tue", &["--parent", text(&parent)]);
    assert!(report["root"] != first["root"]);
    let restored = scene.path("restored");
    let refused = || {
        fails("proxy-client", 6, &["verify", text(&image)]);
        fails(
            "proxy-client",
            6,
            &["restore", text(&image), "--output", text(&restored)],
        );
        tests::image::assert_nothing_left(&restored);
    };

    // A byte of the parent's data: what the incremental one refers to.
    let good = std::fs::read(&parent).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 1;
    std::fs::write(&parent, &bad).unwrap();
    refused();
    // Cut, anywhere.
    for length in [good.len() - 1, good.len() / 2, 0] {
        std::fs::write(&parent, &good[..length]).unwrap();
        refused();
    }
    std::fs::remove_file(&parent).unwrap();
    refused();
    // Another image in its place; and the incremental one itself.
    scene.back_up(&tue, "mon", &[]);
    refused();
    std::fs::remove_file(&parent).unwrap();
    std::fs::copy(&image, &parent).unwrap();
    refused();
    std::fs::write(&parent, &good).unwrap();
    proxy_client(&["verify", text(&image)]);
}

#[test]
fn without_lineage_it_becomes_full_or_fails() {
    needs_loop_devices!("mkfs.xfs");
    let Scene { agent, volume, disk } = Scene::new();
    let mon = agent.freeze("mon");
    let path = |name: &str| disk.outside().join(name);
    let parent = path("mon");
    backup(&[&agent.uri(&mon.export), "--output", text(&parent)]);
    agent.thaw(&mon, &[]);
    // What was kept ends with the agent.
    assert!(agent.host.terminate().success());
    let agent = serve(&volume);
    let tue = agent.freeze("tue");
    let uri = agent.uri(&tue.export);
    let image = path("tue");
    let arguments = [
        "backup",
        &uri,
        "--output",
        text(&image),
        "--parent",
        text(&parent),
    ];
    let error = fails(
        "proxy-client",
        4,
        &[&arguments[..], &["--parent-policy", "refuse"]].concat(),
    );
    assert_eq!(error["kind"], "lineage-broken");
    tests::image::assert_nothing_left(&image);
    let report = backup(&arguments[1..]);
    assert!(report["parent"].is_null());
    assert!(
        report["full_because"].as_str().unwrap().contains(&mon.uuid),
        "{report}"
    );
    std::fs::remove_file(&parent).unwrap();
    proxy_client(&["verify", text(&image)]);
}

/// Writes that come to nothing, and overwrites that leave everything where it is, tell of themselves only to copy-before-write.
#[test]
fn a_chain_of_an_origin_is_as_good_as_full_backups() {
    needs!("qemu-io");
    let origin = Origin::new();
    let agent = &origin.serve();
    let directory = scratch();
    let path = |name: &str| directory.path().join(name);
    let mut parent: Option<PathBuf> = None;
    let rounds: [&[&str]; 4] = [
        &[],
        &["write -P 7 65536 512", "discard 1M 128k", "write -z 3M 64k"],
        // As it was; and what was written comes back to what it was.
        &["write -P 7 65536 512", "write -P 9 5M 4k", "write -z 1M 64k"],
        &["write -P 1 8388096 512"],
    ];
    for (round, writes) in rounds.iter().enumerate() {
        write(agent, writes);
        let frozen = agent.freeze(&round.to_string());
        let uri = agent.uri(&frozen.export);
        let (image, full) = (path(&format!("{round}")), path("full"));
        let mut arguments = vec![uri.as_str(), "--output", text(&image)];
        if let Some(parent) = &parent {
            arguments.extend(["--parent", text(parent), "--parent-policy", "refuse"]);
        }
        let report = backup(&arguments);
        let whole = backup(&[&uri, "--output", text(&full)]);
        assert_eq!(report["root"], whole["root"], "{round}: {report}");
        std::fs::remove_file(full).unwrap();
        let restored = path("restored");
        proxy_client(&["restore", text(&image), "--output", text(&restored)]);
        assert!(std::fs::read(&restored).unwrap() == frozen.bytes, "{round}");
        std::fs::remove_file(restored).unwrap();
        agent.thaw(&frozen, &[]);
        if round > 0 {
            assert!(number(&report, "bytes_same") > 7 * MIB, "{report}");
        }
        parent = Some(image);
    }
}

#[test]
fn a_dirty_bitmap_of_qemu_tells_what_changed() {
    needs!("qemu-nbd", "qemu-img", "qemu-io");
    let directory = scratch();
    let path = |name: &str| directory.path().join(name);
    let (raw, qcow) = (path("raw"), path("disk.qcow2"));
    filled(&raw, 8 * MIB);
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow)],
    );
    let bitmap = |verb: &str| run("qemu-img", &["bitmap", verb, text(&qcow), "since"]);
    let served =
        |options: &[&str]| Peer::qemu_nbd(&[&["-r", "-f", "qcow2"], options, &[text(&qcow)]].concat());
    let (mon, tue, full) = (path("mon"), path("tue"), path("full"));
    let peer = served(&[]);
    backup(&[&peer.uri_text(""), "--output", text(&mon)]);
    peer.terminate();
    bitmap("--add");
    for command in ["write -P 7 100k 4k", "write -P 8 5M 1", "discard 2M 64k"] {
        run(
            "qemu-io",
            &["-f", "qcow2", "-d", "unmap", "-c", command, text(&qcow)],
        );
    }
    bitmap("--disable");

    let peer = served(&["-B", "since"]);
    let uri = peer.uri_text("");
    let with = [
        "--parent",
        text(&mon),
        "--bitmap",
        "since",
        "--parent-policy",
        "refuse",
    ];
    let report = backup(&[&[uri.as_str(), "--output", text(&tue)], &with[..]].concat());
    let whole = backup(&[&uri, "--output", text(&full)]);
    assert_eq!(report["root"], whole["root"], "{report}");
    assert_eq!(number(&report, "bytes_same"), 8 * MIB - 3 * LEAF, "{report}");
    std::fs::remove_file(&full).unwrap();
    proxy_client(&["verify", text(&tue)]);
    // A bitmap of another name tells nothing.
    let other = path("other");
    let with = [
        "--parent",
        text(&mon),
        "--bitmap",
        "until",
        "--parent-policy",
        "refuse",
    ];
    let arguments = [&["backup", &uri, "--output", text(&other)], &with[..]].concat();
    assert_eq!(fails("proxy-client", 4, &arguments)["kind"], "lineage-broken");
}

/// Old content of the target is nowhere taken for the volume's zeroes, or for what is the parent's.
#[test]
fn a_chain_is_restored_over_old_data() {
    needs_loop_devices!("mkfs.xfs");
    let scene = Scene::new();
    let (agent, live) = (&scene.agent, scene.live());
    let mon = agent.freeze("mon");
    scene.back_up(&mon, "mon", &[]);
    agent.thaw(&mon, &[]);
    live.write_all_at(&[7; 4096], 5 * MIB).unwrap();
    live.write_all_at(&vec![0; 1 << 20], 2 * MIB).unwrap();
    nix::fcntl::fallocate(
        &live,
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        3 << 20,
        1 << 20,
    )
    .unwrap();
    let tue = agent.freeze("tue");
    scene.back_up(&tue, "tue", &["--parent", text(&scene.path("mon"))]);
    let image = scene.path("tue");
    let assert_restored = |found: &[u8]| {
        assert!(found.starts_with(&tue.bytes));
        assert!(
            found[tue.bytes.len()..].iter().all(|byte| *byte == volume::OLD),
            "behind it"
        );
    };

    let device = LoopDisk::new(scene.disk.outside(), "device", 10 * MIB, 512);
    volume::full_of_old_data(&device.device, 10 * MIB);
    proxy_client(&["restore", text(&image), "--output", text(&device.device)]);
    assert_restored(&std::fs::read(&device.device).unwrap());

    let (file, socket) = (scene.path("target.img"), scene.path("socket"));
    volume::full_of_old_data(&file, 10 * MIB);
    let host = Host::serve(&[
        "--writable",
        &format!("target={}", file.display()),
        "--socket",
        text(&socket),
        "--control",
        text(&scene.path("control")),
    ]);
    // Its lease is not taken from a server because its file lies beside the images.
    let begun = std::time::Instant::now();
    proxy_client(&["restore", text(&image), "--output", host.uri("target")]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(40));
    assert!(host.terminate().success());
    assert_restored(&std::fs::read(&file).unwrap());
}

#[test]
fn an_incremental_backup_that_is_cut_off_goes_on_where_it_was() {
    needs_loop_devices!("mkfs.xfs");
    let scene = Scene::of(40 * MIB + 5);
    let (agent, live) = (&scene.agent, scene.live());
    let mon = agent.freeze("mon");
    scene.back_up(&mon, "mon", &[]);
    agent.thaw(&mon, &[]);
    // Two batches of changes.
    live.write_all_at(&volume::noise(3, 24 << 20), 8 * MIB).unwrap();
    let tue = agent.freeze("tue");
    let (uri, parent, image) = (agent.uri(&tue.export), scene.path("mon"), scene.path("tue"));
    let partial = scene.path("tue.partial");
    let again = |more: &[&str]| -> Vec<String> {
        let words = [
            "backup",
            &uri,
            "--json",
            "--host-is-this-machine",
            "--checkpoint-every",
            "1M",
        ];
        let to = ["--output", text(&image), "--parent", text(&parent)];
        [&words[..], &to, more]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    run_up_to(20 << 20, &again(&[]));
    // Not begun anew without being asked.
    let words = again(&[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(fails("proxy-client", 1, &words)["kind"], "output-exists");

    // Not without the very image that it continues.
    let left = std::fs::read(&partial).unwrap();
    let resume = ["resume", text(&image), "--host-is-this-machine", "--json"];
    let away = scene.disk.path.join("away");
    std::fs::copy(&parent, &away).unwrap();
    std::fs::remove_file(&parent).unwrap();
    fails("proxy-client", 6, &resume);
    scene.back_up(&tue, "mon", &[]);
    fails("proxy-client", 6, &resume);
    std::fs::remove_file(&parent).unwrap();
    assert!(std::fs::read(&partial).unwrap() == left, "it is as it was");

    let report = proxy_client(&[&resume[..], &["--parent", text(&away)]].concat());
    let report: Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert_eq!(report["parent"], *mon.uuid);
    assert_eq!(number(&report, "bytes_same"), 16 * MIB + 5, "{report}");
    assert!(!partial.exists());
    std::fs::rename(&away, &parent)
        .or_else(|_| std::fs::copy(&away, &parent).map(drop))
        .unwrap();
    scene.assert_as_good_as_full(&tue, "tue", &report);
}

#[test]
fn the_source_is_read_again_and_compared() {
    needs_loop_devices!("mkfs.xfs", "nbdkit");
    let scene = Scene::new();
    let (agent, live) = (&scene.agent, scene.live());
    let mon = agent.freeze("mon");
    scene.back_up(&mon, "mon", &[]);
    agent.thaw(&mon, &[]);
    live.write_all_at(&[7; 4096], 5 * MIB).unwrap();
    let tue = agent.freeze("tue");
    let (image, parent) = (scene.path("tue"), scene.path("mon"));
    scene.back_up(&tue, "tue", &["--parent", text(&parent)]);
    let uri = agent.uri(&tue.export);
    let against = |image: &Path, uri: &str| -> Value {
        let told = proxy_client(&["verify", text(image), "--against", uri, "--json"]);
        serde_json::from_str(&told).unwrap()
    };
    let told = against(&image, &uri);
    assert_eq!(told["against"]["same_frozen_image"], true, "{told}");
    assert_eq!(told["against"]["bytes_compared"], 8 * MIB + 100, "{told}");
    assert_eq!(told["against"]["differing"]["bytes"], 0, "{told}");
    // Another frozen image.
    let error = fails("proxy-client", 5, &["verify", text(&parent), "--against", &uri]);
    assert_eq!(error["kind"], "frozen-image-gone");

    // A server that publishes none: bytes alone.
    let copy = scene.path("copy");
    std::fs::write(&copy, &tue.bytes).unwrap();
    let plain = Peer::nbdkit_file(&[], &copy, &[]);
    let told = against(&image, &plain.uri_text(""));
    assert_eq!(told["against"]["same_frozen_image"], false, "{told}");
    let written = File::options().write(true).open(&copy).unwrap();
    written.write_all_at(&[1; 3], 4094).unwrap();
    written.write_all_at(&[2], 8 * MIB + 92).unwrap();
    let output = tests::program::run(
        "proxy-client",
        &["verify", text(&image), "--against", &plain.uri_text(""), "--json"],
    );
    assert_eq!(output.status.code(), Some(6));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        told["against"]["differing"],
        serde_json::json!({ "bytes": 8192 + 100, "count": 2, "listed": [[0, 8192], [8 * MIB, 8 * MIB + 100]] })
    );
    let shorter = scene.path("shorter");
    std::fs::write(&shorter, &tue.bytes[1..]).unwrap();
    let plain = Peer::nbdkit_file(&[], &shorter, &[]);
    let error = fails(
        "proxy-client",
        6,
        &["verify", text(&image), "--against", &plain.uri_text("")],
    );
    assert_eq!(error["kind"], "source-differs");
}
