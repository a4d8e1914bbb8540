//! Through stdin and stdout.

use std::process::{Command, Stdio};

use tests::disk::LoopDisk;
use tests::peer::Peer;
use tests::{image, needs, needs_loop_devices};

use super::*;

#[test]
fn stdout_gets_the_bytes_in_order() {
    needs!("nbdkit");
    let site = Site::new();
    let wanted = digest::of_file(&site.source);
    let peer = Peer::nbdkit_file(&[], &site.source, &[]);
    for source in [site.source().to_owned(), peer.uri_text("")] {
        let mut copy = Command::new(program::built("proxy-client"));
        assert_eq!(
            digest::of_command(copy.args(["copy", &source, "-"])),
            wanted,
            "{source}"
        );
    }
}

#[test]
fn stdin_is_copied_to_its_end() {
    needs!("qemu-nbd");
    let site = Site::new();
    let fed = |arguments: &[&str]| {
        let arguments = [&["--error-format", "json", "copy", "-"], arguments].concat();
        program::run_fed("proxy-client", &arguments, File::open(&site.source).unwrap())
    };
    let target = site.path("target");
    assert!(fed(&[target.to_str().unwrap()]).status.success());
    site.assert_copied(&target, 0);

    let old = site.old("old", site.size() + MIB);
    let peer = Peer::qemu_nbd(&["-f", "raw", &old]);
    let output = fed(&["--json", &peer.uri_text("")]);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["left_alone"], MIB, "{report}");
    drop(peer);
    site.assert_copied(old.as_ref(), MIB);

    // A target that turns out to be too small.
    let small = site.old("small", site.size() - 4096);
    let peer = Peer::qemu_nbd(&["-f", "raw", &small]);
    let error = program::error_object(&fed(&[&peer.uri_text("")]));
    assert_eq!(error["kind"], "target-too-small", "{error}");
    assert!(
        error["message"].as_str().unwrap().contains("incomplete"),
        "{error}"
    );
}

#[test]
fn a_stream_of_another_length_than_announced_leaves_nothing() {
    let site = Site::new();
    let target = site.path("target");
    let size = site.size();
    for announced in [size + 1, size - 1, 0, 10 * size] {
        let stdin = File::open(&site.source).unwrap();
        let arguments = [
            "--error-format",
            "json",
            "copy",
            "-",
            target.to_str().unwrap(),
            "--size",
            &announced.to_string(),
        ];
        let error = program::error_object(&program::run_fed("proxy-client", &arguments, stdin));
        assert_eq!(error["kind"], "source-cut", "{announced}: {error}");
        image::assert_nothing_left(&target);
    }
    let stdin = File::open(&site.source).unwrap();
    let arguments = ["copy", "-", target.to_str().unwrap(), "--size", &size.to_string()];
    assert!(
        program::run_fed("proxy-client", &arguments, stdin)
            .status
            .success()
    );
    site.assert_copied(&target, 0);
}

#[test]
fn a_reader_that_goes_away_is_a_failure() {
    let site = Site::new();
    let mut child = Command::new(program::built("proxy-client"))
        .args(["--error-format", "json", "copy", site.source(), "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = program::error_object(&output);
    assert_eq!(error["kind"], "io", "{error}");
    assert!(
        error["message"].as_str().unwrap().contains("Broken pipe"),
        "{error}"
    );
}

/// 24 MiB, of which only zeroes lie behind the 8 MiB of the target: zeroes that are left away have to fit all the same.
fn assert_too_long_for(target: &str) {
    let site = Site::of(|path| volume::sparse(path, 24 * MIB, &[0..MIB, 2 * MIB..3 * MIB]));
    let stdin = File::open(&site.source).unwrap();
    let arguments = ["--error-format=json", "copy", "--target-is-zero", "-", target];
    let error = program::error_object(&program::run_fed("proxy-client", &arguments, stdin));
    assert_eq!(error["kind"], "target-too-small", "{error}");
}

#[test]
fn zeroes_behind_the_end_of_a_server_that_is_vouched_for_do_not_fit() {
    needs!("nbdkit");
    assert_too_long_for(&Peer::nbdkit(&["memory", "8M"]).uri_text(""));
}

#[test]
fn zeroes_behind_the_end_of_a_device_that_is_vouched_for_do_not_fit() {
    needs_loop_devices!();
    let site = Site::of(|path| volume::sparse(path, 8 * MIB, &[]));
    let device = LoopDisk::on(&site.source, &[]);
    assert_too_long_for(device.device.to_str().unwrap());
}

#[test]
fn a_closed_stream_is_neither_an_empty_source_nor_a_target() {
    let site = Site::new();
    let (empty, target) = (site.text("empty"), site.text("target"));
    let shell = |script: &str, arguments: &[&str]| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(program::built("proxy-client"));
        shell.args(arguments).output().unwrap()
    };
    for (script, arguments) in [
        ("exec \"$0\" \"$@\" <&-", ["copy", "-", &target]),
        ("exec \"$0\" \"$@\" >&-", ["copy", site.source(), "-"]),
    ] {
        let arguments = [&["--error-format=json"], &arguments[..]].concat();
        let output = shell(script, &arguments);
        assert_eq!(output.status.code(), Some(1), "{script}");
        let error = program::error_object(&output);
        assert!(error["message"].as_str().unwrap().contains("closed"), "{error}");
        image::assert_nothing_left(target.as_ref());
    }
    // Whoever says so gets it.
    assert!(
        shell("exec \"$0\" \"$@\" </dev/null", &["copy", "-", &empty])
            .status
            .success()
    );
    let output = shell("exec \"$0\" \"$@\" >/dev/null", &["copy", site.source(), "-"]);
    assert!(output.status.success());
}

#[test]
fn only_stdin_has_a_size_to_be_announced() {
    let site = Site::new();
    let arguments = ["copy", "--size", "1M", site.source(), &site.text("target")];
    let error = program::fails("proxy-client", 2, &arguments);
    assert_eq!(error["kind"], "usage", "{error}");
    image::assert_nothing_left(&site.path("target"));
}
