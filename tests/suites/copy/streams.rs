//! Through stdin and stdout.

use std::process::{Command, Stdio};

use tests::peer::Peer;
use tests::{image, needs};

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
    assert!(fed(&[&peer.uri_text("")]).status.success());
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
