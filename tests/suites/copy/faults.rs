//! Servers that fail, stall, go away and come back: right bytes, or a failure and no file that looks whole.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use tests::cutting_proxy::{Cut, CuttingProxy};
use tests::peer::Peer;
use tests::{image, needs, needs_loop_devices};

use super::*;

/// A source of noise, so that no read can be left away.
fn dense() -> Site {
    Site::of(|path| volume::dense(path, 32 * MIB))
}

#[test]
fn a_failing_read_fails_the_copy_whatever_else_succeeds() {
    needs!("nbdkit");
    let site = dense();
    // nbdkit 1.32 does not outlive a client that leaves after an injected error: a new one for each.
    for (rate, connections) in [("100%", "1"), ("5%", "1"), ("5%", "4")] {
        let failing = ["error-pread=EIO", &format!("error-pread-rate={rate}")];
        let peer = Peer::nbdkit_file(&["--filter=error"], &site.source, &failing);
        let target = site.path("target");
        let arguments = [
            "--connections",
            connections,
            &peer.uri_text(""),
            target.to_str().unwrap(),
        ];
        fails("host-refused", &arguments);
        image::assert_nothing_left(&target);
        let peer = Peer::nbdkit_file(&["--filter=error"], &site.source, &failing);
        fails("host-refused", &[&peer.uri_text(""), "-"]);
    }
}

#[test]
fn a_failing_write_fails_the_copy() {
    needs!("nbdkit");
    let site = dense();
    let old = site.old("old", site.size());
    let no_space = [
        "--filter=error",
        "file",
        &old,
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
    ];
    let no_flush = [
        "eval",
        "get_size=echo 32M",
        "pread=exit 1",
        "pwrite=cat >/dev/null",
        "can_flush=exit 0",
        "flush=echo EIO it is gone >&2; exit 1",
    ];
    for arguments in [&no_space[..], &no_flush] {
        let peer = Peer::nbdkit(arguments);
        let error = fails("host-refused", &[site.source(), &peer.uri_text("")]);
        assert!(
            error["message"].as_str().unwrap().contains("incomplete"),
            "{error}"
        );
    }
}

/// A connection that breaks at any byte is taken up again, and the copy has the right bytes.
#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    needs!("qemu-nbd");
    let site = dense();
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", site.source()]);
    for (connection, after) in [(1, 5000), (1, 3 << 20), (2, 700_001), (3, 1 << 20), (4, 333)] {
        let proxy = CuttingProxy::new(peer.socket(), Cut { connection, after });
        let target = site.path(&format!("target-{connection}-{after}"));
        let report = copy(&[&proxy.uri(""), target.to_str().unwrap()]);
        site.assert_copied(&target, 0);
        // A connection that was never more than opened may break in its handshake: then there is one less.
        assert!(report["reconnections"] == 1 || after < 1000, "{report}");
    }
}

#[test]
fn without_reconnecting_a_lost_connection_ends_the_copy() {
    needs!("qemu-nbd");
    let site = dense();
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", site.source()]);
    let cut = Cut {
        connection: 2,
        after: 1 << 20,
    };
    let proxy = CuttingProxy::new(peer.socket(), cut);
    let target = site.path("target");
    fails(
        "host-lost",
        &["--reconnect", "0", &proxy.uri(""), target.to_str().unwrap()],
    );
    image::assert_nothing_left(&target);
}

/// Kills a server once a copy has begun, and starts another on its socket a moment later.
fn restart(peer: Peer, pause: Duration, arguments: &[&str]) -> Peer {
    thread::sleep(Duration::from_millis(400));
    peer.replace(arguments, pause)
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_read_on() {
    needs!("nbdkit");
    let site = dense();
    let slow = ["-r", "--filter=delay", "file", site.source(), "rdelay=150ms"];
    let peer = Peer::nbdkit(&slow);
    let target = site.path("target");
    let uri = peer.uri_text("");
    let arguments = [
        "copy",
        "--json",
        "--connections=2",
        "--requests=2",
        &uri,
        target.to_str().unwrap(),
    ];
    let copy = program::start("proxy-client", &arguments, std::process::Stdio::null());
    let _restarted = restart(peer, Duration::from_millis(300), &slow);
    let output = copy.wait();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["reconnections"].as_u64().unwrap() >= 1, "{report}");
    site.assert_copied(&target, 0);
}

/// What was acknowledged and not flushed is gone with the server: it is written again, from a source that can be read again.
#[test]
fn a_target_that_loses_what_it_had_not_flushed_gets_it_again() {
    needs!("nbdkit");
    let site = dense();
    for streamed in [false, true] {
        // Memory forgets everything with its server: nothing but writing all of it again helps.
        let serve = ["--filter=delay", "memory", "32M", "wdelay=50ms"];
        let peer = Peer::nbdkit(&serve);
        let uri = peer.uri_text("");
        let source = if streamed { "-" } else { site.source() };
        let arguments = [
            "--error-format=json",
            "copy",
            "--json",
            "--connections=2",
            "--requests=2",
            source,
            &uri,
        ];
        let stdin = File::open(&site.source).unwrap();
        let running = program::start("proxy-client", &arguments, stdin);
        let restarted = restart(peer, Duration::from_millis(300), &serve);
        let output = running.wait();
        if streamed {
            let error = program::error_object(&output);
            assert_eq!(error["kind"], "host-lost", "{error}");
            continue;
        }
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["bytes_again"].as_u64().unwrap() > 0, "{report}");
        let back = site.path("back");
        copy(&[&uri, back.to_str().unwrap()]);
        site.assert_copied(&back, 0);
        drop(restarted);
    }
}

#[test]
fn a_server_that_comes_back_with_something_else_is_another() {
    needs!("nbdkit");
    let site = dense();
    let peer = Peer::nbdkit(&["-r", "--filter=delay", "file", site.source(), "rdelay=60"]);
    let target = site.path("target");
    let uri = peer.uri_text("");
    let arguments = [
        "--error-format=json",
        "copy",
        "--connections=2",
        "--requests=2",
        &uri,
        target.to_str().unwrap(),
    ];
    let running = program::start("proxy-client", &arguments, std::process::Stdio::null());
    let _restarted = restart(peer, Duration::ZERO, &["-r", "memory", "33M"]);
    let error = program::error_object(&running.wait());
    assert_eq!(error["kind"], "export-changed", "{error}");
    assert!(error["message"].as_str().unwrap().contains("size"), "{error}");
    image::assert_nothing_left(&target);
}

#[test]
fn a_server_that_stalls_is_given_up_in_time() {
    needs!("nbdkit");
    let site = dense();
    let peer = Peer::nbdkit(&["-r", "--filter=delay", "file", site.source(), "rdelay=60"]);
    let target = site.path("target");
    let uri = peer.uri_text("");
    for (options, kind) in [
        (&["--request-timeout=4s", "--reconnect=2s"][..], "host-lost"),
        (&["--request-timeout=4s", "--reconnect=0"], "host-lost"),
        (&["--timeout=6s"], "deadline-passed"),
    ] {
        let arguments = [
            &["--error-format=json", "copy", "--requests=1"],
            options,
            &[&uri, target.to_str().unwrap()],
        ]
        .concat();
        let mut running = program::start("proxy-client", &arguments, std::process::Stdio::null());
        running.wait_for(&site.path("target.partial"));
        peer.signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        let output = running.wait();
        let took = stopped.elapsed();
        peer.signal(Signal::SIGCONT);
        let error = program::error_object(&output);
        assert_eq!(
            (output.status.code(), &error["kind"]),
            (Some(1), &kind.into()),
            "{error}"
        );
        assert!(took < Duration::from_secs(30), "{options:?}: {took:?}");
        image::assert_nothing_left(&target);
    }
}

#[test]
fn a_full_file_system_leaves_nothing() {
    needs_loop_devices!("mkfs.ext4");
    let site = dense();
    let small = disk::Mounted::ext4(16 * MIB);
    let target = small.path.join("target");
    let error = fails("io", &[site.source(), target.to_str().unwrap()]);
    assert!(error["message"].as_str().unwrap().contains("No space"), "{error}");
    image::assert_nothing_left(&target);
}

#[test]
fn a_frozen_image_that_ends_ends_the_copy_for_good() {
    let site = dense();
    let control = site.text("control");
    let host = program::Host::serve(&[
        &format!("vol={}", site.source()),
        "--socket",
        &site.text("socket"),
        "--control",
        &control,
    ]);
    // The first bytes pass, then the image is thawed under the copy.
    let thaw = {
        let control = control.clone();
        move || {
            program::nbd_export(&["thaw", "vol", "--control", &control]);
        }
    };
    let cut = Cut {
        connection: 1,
        after: 2 << 20,
    };
    let socket = site.path("socket");
    let proxy = CuttingProxy::with_action(&socket, cut, thaw);
    let target = site.path("target");
    let arguments = [
        "copy",
        "--connections=1",
        &proxy.uri("vol"),
        target.to_str().unwrap(),
    ];
    let error = program::fails("proxy-client", 5, &arguments);
    assert_eq!(error["kind"], "frozen-image-gone", "{error}");
    image::assert_nothing_left(&target);
    host.terminate();
}

/// Law P5 for every connection of a copy: a host that was started again has another frozen image under the name.
#[test]
fn another_frozen_image_under_the_name_is_not_read_on() {
    let site = dense();
    let arguments: Vec<String> = [
        &format!("vol={}", site.source()),
        "--socket",
        &site.text("socket"),
        "--control",
        &site.text("control"),
    ]
    .map(str::to_owned)
    .into();
    let serve = move || program::Host::serve(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let first = serve();
    let (to_test, second) = std::sync::mpsc::channel();
    let restart = move || {
        first.kill();
        to_test.send(serve()).unwrap();
    };
    let cut = Cut {
        connection: 1,
        after: 2 << 20,
    };
    let proxy = CuttingProxy::with_action(&site.path("socket"), cut, restart);
    let target = site.path("target");
    let arguments = [
        "copy",
        "--connections=1",
        &proxy.uri("vol"),
        target.to_str().unwrap(),
    ];
    let error = program::fails("proxy-client", 5, &arguments);
    assert_eq!(error["kind"], "frozen-image-gone", "{error}");
    image::assert_nothing_left(&target);
    second.recv().unwrap().terminate();
}

/// Waits until a target has been changed, or the copy has ended. To look is all: who has it open is in the way of the copy.
fn wait_until_begun(copy: &mut program::Running, target: &Path, written: SystemTime) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while copy.is_alive() && modified(target) == written {
        assert!(Instant::now() < deadline, "the copy never begins");
        thread::sleep(Duration::from_millis(50));
    }
}

fn modified(file: &Path) -> SystemTime {
    file.metadata().unwrap().modified().unwrap()
}

/// What was there before is given up with the first byte: whoever ends the copy hears that, and finds no file of the full size.
#[test]
fn a_copy_that_is_stopped_says_what_became_of_its_target() {
    needs!("nbdkit", "qemu-nbd");
    let site = dense();
    let slow = Peer::nbdkit(&["-r", "--filter=delay", "file", site.source(), "rdelay=3"]);
    let source = slow.uri_text("");
    let (file, disk) = (site.old("file", 4096), site.old("disk", site.size()));
    let target = Peer::qemu_nbd(&["-f", "raw", &disk]);
    for (target, path, signal) in [
        (file.clone(), &file, Some(Signal::SIGTERM)),
        (file.clone(), &file, None),
        (target.uri_text(""), &disk, Some(Signal::SIGINT)),
        (target.uri_text(""), &disk, None),
    ] {
        volume::full_of_old_data(path.as_ref(), site.size());
        let written = modified(path.as_ref());
        let deadline = if signal.is_some() { "1h" } else { "9s" };
        let arguments = [
            "--error-format=json",
            "copy",
            "--force",
            "--requests=1",
            "--connections=1",
            "--timeout",
            deadline,
            &source,
            &target,
        ];
        let mut copy = program::start("proxy-client", &arguments, std::process::Stdio::null());
        if let Some(signal) = signal {
            wait_until_begun(&mut copy, path.as_ref(), written);
            copy.signal(signal);
        }
        let output = copy.wait();
        let error = program::error_object(&output);
        let kind = signal.map_or("deadline-passed", |_| "interrupted");
        assert_eq!(error["kind"], kind, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("is incomplete"), "{error}");
        assert!(std::fs::metadata(&file).unwrap().len() < site.size());
    }
}

#[test]
fn an_export_that_is_not_frozen_and_shuts_down_is_a_lost_host() {
    needs!("nbdkit");
    let site = dense();
    let peer = Peer::nbdkit(&[
        "eval",
        "get_size=echo 32M",
        "pread=echo ESHUTDOWN it goes down >&2; exit 1",
    ]);
    let target = site.path("target");
    fails(
        "host-lost",
        &["--reconnect=2s", &peer.uri_text(""), target.to_str().unwrap()],
    );
    image::assert_nothing_left(&target);
}
