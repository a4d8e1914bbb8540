//! `backup`: outputs that are refused, LUNs that make no sense, reports, policies, interrupts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::disk::Scratch;
use tests::peer::Peer;
use tests::{disk, image, needs, needs_loop_devices, program, volume};

/// A server with a volume, and where its image goes.
struct Scene {
    directory: Scratch,
    volume: PathBuf,
    image: PathBuf,
    peer: Peer,
}

impl Scene {
    /// Needs nbdkit.
    fn new() -> Self {
        Self::with(&[], &[])
    }

    fn with(options: &[&str], parameters: &[&str]) -> Self {
        let directory = disk::scratch();
        let volume = directory.path().join("volume");
        volume::motley(&volume);
        Self {
            peer: Peer::nbdkit_file(options, &volume, parameters),
            image: directory.path().join("image.vbi.zst"),
            directory,
            volume,
        }
    }

    fn uri(&self) -> String {
        self.peer.uri_text("")
    }

    /// A backup to `output` must fail so; the error object.
    fn assert_fails(&self, output: &Path, more: &[&str], code: i32, kind: &str) -> Value {
        let uri = self.uri();
        let arguments = ["backup", &uri, "--output", output.to_str().unwrap()];
        let error = program::fails("proxy-client", code, &[&arguments, more].concat());
        assert_eq!(error["kind"], kind, "{error}");
        error
    }
}

#[test]
fn an_existing_output_is_refused_and_untouched() {
    needs!("nbdkit");
    let scene = Scene::new();
    std::fs::write(&scene.image, "precious").unwrap();
    scene.assert_fails(&scene.image, &[], 1, "output-exists");
    assert_eq!(std::fs::read(&scene.image).unwrap(), b"precious");
    let dangling = scene.directory.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    scene.assert_fails(&dangling, &[], 1, "output-exists");
    scene.assert_fails(&scene.directory.path().join("no/such/directory"), &[], 1, "io");
}

#[test]
fn luns_that_make_no_sense() {
    needs!("nbdkit");
    let scene = Scene::new();
    let lun = scene.directory.path().join("lun");
    volume::dense(&lun, 1 << 20);
    let lun = lun.to_str().unwrap();
    let (named, missing) = (format!("id:a={lun}"), format!("id:a={lun}-missing"));
    for (luns, code, kind) in [
        (vec!["plain"], 2, "usage"),
        (vec!["id:a="], 2, "usage"),
        (vec!["="], 2, "usage"),
        (vec![""], 2, "usage"),
        // A file has no identity of its own.
        (vec![lun], 2, "usage"),
        (vec![named.as_str(), named.as_str()], 2, "usage"),
        (vec![missing.as_str()], 1, "io"),
    ] {
        let options: Vec<&str> = luns.iter().flat_map(|lun| ["--lun", lun]).collect();
        scene.assert_fails(&scene.image, &options, code, kind);
        image::assert_nothing_left(&scene.image);
    }
}

/// A LUN that the host has never heard of is of no use, and does no harm.
#[test]
fn a_lun_that_the_host_does_not_know_is_not_read() {
    needs!("nbdkit", "zstd");
    let scene = Scene::new();
    let lun = scene.directory.path().join("lun");
    volume::dense(&lun, 1 << 20);
    let lun = format!("id:a={}", lun.display());
    let report = program::backup(&[
        &scene.uri(),
        "--output",
        scene.image.to_str().unwrap(),
        "--lun",
        &lun,
    ]);
    assert_eq!(report["bytes_direct"], 0);
    assert_eq!(report["identity"][0]["proof"], "not proven", "{report}");
    image::assert_holds(&scene.image, &scene.volume);
}

/// Many servers answer to every name with their one volume, `vm.tag` among them: no nonce may be written there.
#[test]
fn a_volume_that_answers_for_a_tag_is_not_written() {
    needs!("nbdkit");
    let directory = disk::scratch();
    let path = |name: &str| directory.path().join(name);
    let (volume, lun) = (path("volume"), path("lun"));
    // As small as a tag, and a LUN that the host may mean.
    volume::dense(&volume, 64 << 10);
    volume::dense(&lun, 1 << 20);
    let before = std::fs::read(&volume).unwrap();
    let lun = format!("id:a={}", lun.display());
    let peer = Peer::nbdkit(&["--exit-with-parent", "file", volume.to_str().unwrap()]);
    let output = path("image");
    let arguments = [
        "backup",
        &peer.uri_text("vm"),
        "--output",
        output.to_str().unwrap(),
        "--lun",
        &lun,
    ];
    program::proxy_client(&arguments);
    assert!(std::fs::read(&volume).unwrap() == before);
}

/// While it is read a LUN is kept from writes on this machine, and no longer.
#[test]
fn a_lun_is_writable_again_after_the_job() {
    needs_loop_devices!("nbdkit");
    let scene = Scene::with(&["--filter=delay"], &["rdelay=300ms"]);
    let disk = disk::LoopDisk::new(scene.directory.path(), "lun", 1 << 20, 512);
    let (uri, lun) = (scene.uri(), format!("id:a={}", disk.device.display()));
    let device = disk.device.to_str().unwrap();
    let arguments = [
        "backup",
        &uri,
        "--output",
        scene.image.to_str().unwrap(),
        "--lun",
        &lun,
    ];
    let mut backup = program::start("proxy-client", &arguments, Stdio::null());
    backup.wait_for(&scene.image.with_extension("zst.partial"));
    assert_eq!(disk::run("blockdev", &["--getro", device]).trim(), "1");
    assert!(backup.wait().status.success());
    assert_eq!(disk::run("blockdev", &["--getro", device]).trim(), "0");
}

#[test]
fn an_output_on_the_lun_is_refused() {
    needs_loop_devices!("nbdkit", "mkfs.ext4");
    let scene = Scene::new();
    let mounted = disk::Mounted::ext4(64 << 20);
    let output = mounted.path.join("image");
    for lun in [&mounted.disk.lun, &mounted.disk.device] {
        let lun_argument = format!("id:a={}", lun.display());
        let arguments = ["--host-is-this-machine", "--lun", &lun_argument];
        scene.assert_fails(&output, &arguments, 1, "output-is-source");
        image::assert_nothing_left(&output);
        scene.assert_fails(lun, &arguments, 1, "output-is-source");
    }
}

const REPORTED: [&str; 12] = [
    "size",
    "bytes_direct",
    "bytes_nbd",
    "bytes_zero",
    "bytes_moved",
    "bytes_remapped_direct",
    "validations",
    "frozen",
    "root",
    "seconds",
    "identity",
    "transport_reasons",
];

fn assert_reported(report: &Value) {
    let fields = report.as_object().unwrap();
    for name in REPORTED {
        assert!(fields.contains_key(name), "{name} is missing: {report}");
    }
    let root = report["root"].as_str().unwrap();
    assert!(
        root.len() == 64 && root.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{root}"
    );
    assert!(report["seconds"].as_f64() > Some(0.0));
    assert_eq!(
        report["transport_reasons"].as_array().unwrap().len(),
        1,
        "{report}"
    );
}

#[test]
fn the_report_is_whole_and_inspect_tells_the_same() {
    needs!("nbdkit");
    let scene = Scene::new();
    let image = scene.image.to_str().unwrap();
    let output = program::run(
        "proxy-client",
        &["backup", &scene.uri(), "--output", image, "--json"],
    );
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_reported(&report);
    let inspected: Value =
        serde_json::from_str(&program::proxy_client(&["inspect", "--json", image])).unwrap();
    for field in [
        "size",
        "root",
        "bytes_direct",
        "bytes_nbd",
        "bytes_moved",
        "validations",
        "frozen",
    ] {
        assert_eq!(report[field], inspected[field], "{field}");
    }
}

#[test]
fn the_report_goes_to_stderr_when_the_image_goes_to_stdout() {
    needs!("nbdkit", "zstd");
    let scene = Scene::new();
    let output = program::run(
        "proxy-client",
        &["backup", &scene.uri(), "--output", "-", "--json"],
    );
    assert!(output.status.success());
    std::fs::write(&scene.image, output.stdout).unwrap();
    image::assert_holds(&scene.image, &scene.volume);
    // Warnings may come before it.
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_reported(&serde_json::from_str(stderr.lines().last().unwrap()).unwrap());
}

/// Without a terminal there is no progress bar and no colour ([`program::Running::wait`] looks for colours in every run),
/// however much is logged.
#[test]
fn a_pipe_gets_no_progress_bar_and_no_colours() {
    needs!("nbdkit");
    let scene = Scene::with(&["--filter=delay"], &["rdelay=100ms"]);
    let output = Command::new(program::built("proxy-client"))
        .args(["backup", &scene.uri(), "--output"])
        .arg(&scene.image)
        .env("RUST_LOG", "trace")
        .env("CLICOLOR_FORCE", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{stderr}");
    assert!(!stderr.contains(['\r', '\x1b']), "{stderr}");
    assert!(stderr.contains("backed up 32.00 MiB"), "{stderr}");
}

#[test]
fn a_missed_policy_has_its_own_exit_code_and_a_good_image() {
    needs!("qemu-nbd", "zstd");
    let directory = disk::scratch();
    let (volume, image) = (directory.path().join("volume"), directory.path().join("image"));
    volume::motley(&volume);
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", volume.to_str().unwrap()]);
    let (uri, output) = (peer.uri_text(""), image.to_str().unwrap());
    let error = program::fails(
        "proxy-client",
        4,
        &["backup", &uri, "--output", output, "--require-direct", "95"],
    );
    assert_eq!(error["kind"], "policy-missed");
    image::assert_holds(&image, &volume);

    // The report still comes.
    std::fs::remove_file(&image).unwrap();
    let arguments = [
        "backup",
        &uri,
        "--output",
        output,
        "--require-direct",
        "0.1",
        "--json",
    ];
    let output = program::run("proxy-client", &arguments);
    assert_eq!(output.status.code(), Some(4));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["policy_missed"], 0.1);
    assert_reported(&report);
}

/// Where there is no data, none was read past the policy.
#[test]
fn a_volume_of_zeroes_meets_every_policy() {
    needs!("nbdkit");
    let directory = disk::scratch();
    let peer = Peer::nbdkit(&["memory", "size=1M"]);
    let image = directory.path().join("image");
    let arguments = [
        &peer.uri_text(""),
        "--output",
        image.to_str().unwrap(),
        "--require-direct",
        "100",
    ];
    assert_eq!(program::backup(&arguments)["bytes_zero"], 1 << 20);
}

#[test]
fn an_interrupted_backup_leaves_nothing() {
    needs!("nbdkit");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // One each: nbdkit 1.32 may die of an assertion (raw_send_socket) when a client goes while its reads are delayed.
        let scene = Scene::with(&["--filter=delay"], &["rdelay=60"]);
        let (uri, output) = (scene.uri(), scene.image.to_str().unwrap());
        let arguments = ["--error-format", "json", "backup", &uri, "--output", output];
        let mut backup = program::start("proxy-client", &arguments, Stdio::null());
        backup.wait_for(&scene.image.with_extension("zst.partial"));
        std::thread::sleep(Duration::from_millis(100));
        backup.signal(signal);
        let output = backup.wait();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(program::error_object(&output)["kind"], "interrupted");
        image::assert_nothing_left(&scene.image);
    }
}

/// What reads the image from a pipe and goes away ends the backup.
#[test]
fn a_closed_pipe_ends_the_backup() {
    needs!("nbdkit");
    let scene = Scene::new();
    let mut backup = Command::new(program::built("proxy-client"))
        .args(["backup", &scene.uri(), "--output", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(backup.stdout.take());
    let output = backup.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked at"), "{stderr}");
}
