//! To writable servers that others wrote, and to ours.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tests::peer::Peer;
use tests::program::Host;
use tests::{image, needs};

use super::*;

fn qcow2(site: &Site, name: &str, size: u64) -> String {
    let path = site.text(name);
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &path, &size.to_string()],
    );
    path
}

fn assert_qcow2_holds(site: &Site, image: &str) {
    run("qemu-img", &["check", "-q", image]);
    // Behind a shorter source only zeroes are the same to it; these images are new.
    run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", image, site.source()],
    );
}

#[test]
fn qemu_nbd_takes_a_copy_into_qcow2() {
    needs!("qemu-nbd", "qemu-img");
    let site = Site::new();
    for (name, more) in [("same", 0), ("larger", 8 * MIB)] {
        let image = qcow2(&site, name, site.size() + more);
        let peer = Peer::qemu_nbd(&["-f", "qcow2", "--discard=unmap", &image]);
        let report = copy(&[site.source(), &peer.uri_text("")]);
        assert_eq!(report["left_alone"], more);
        assert!(report["target_connections"].as_u64().unwrap() > 1, "{report}");
        peer.terminate();
        assert_qcow2_holds(&site, &image);
    }
}

#[test]
fn a_backup_image_is_restored_into_qcow2() {
    needs!("qemu-nbd", "qemu-img", "nbdkit");
    let site = Site::new();
    let backup = image::of(&site.source);
    let disk = qcow2(&site, "disk", site.size());
    // Old content, which must not shine through where the volume has zeroes.
    run(
        "qemu-io",
        &["-c", &format!("write -P 0xa5 0 {}", site.size()), &disk],
    );
    let peer = Peer::qemu_nbd(&["-f", "qcow2", &disk]);
    program::proxy_client(&[
        "restore",
        backup.to_str().unwrap(),
        "--output",
        &peer.uri_text(""),
    ]);
    peer.terminate();
    assert_qcow2_holds(&site, &disk);

    let small = qcow2(&site, "small", site.size() - 4096);
    let peer = Peer::qemu_nbd(&["-f", "qcow2", &small]);
    let arguments = [
        "restore",
        backup.to_str().unwrap(),
        "--output",
        &peer.uri_text(""),
    ];
    let error = program::fails("proxy-client", 1, &arguments);
    assert_eq!(error["kind"], "target-too-small", "{error}");
}

/// Servers with and without WRITE_ZEROES, FLUSH, several connections and small blocks: old content never shines through.
#[test]
fn old_content_of_an_export_does_not_survive() {
    needs!("nbdkit");
    let site = Site::new();
    let none: &[&str] = &[];
    for (number, (options, parameters)) in [
        (none, none),
        (&["--filter=nozero"][..], none),
        (&["--no-sr"], none),
        (&["--filter=multi-conn"], &["multi-conn-mode=disable"][..]),
        (&["--filter=fua"], &["fuamode=discard"]),
        (
            &["--filter=blocksize-policy"],
            &[
                "blocksize-minimum=4096",
                "blocksize-preferred=64K",
                "blocksize-maximum=128K",
                "blocksize-error-policy=error",
            ],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let old = site.old(&format!("old{number}"), site.size() + MIB);
        let peer = Peer::nbdkit(&[options, &["file", &old], parameters].concat());
        copy(&[site.source(), &peer.uri_text("")]);
        drop(peer);
        site.assert_copied(old.as_ref(), MIB);
    }
}

/// Pieces that do not keep to the block size of the target share its blocks.
#[test]
fn blocks_that_two_pieces_share_get_the_bytes_of_both() {
    needs!("nbdkit");
    let data: Vec<_> = (0..400).map(|n| n * 20_011..n * 20_011 + 7001).collect();
    let site = Site::of(|path| volume::sparse(path, 8 * MIB + 513, &data));
    let backup = image::of(&site.source);
    let sizes = [
        "blocksize-minimum=16K",
        "blocksize-preferred=64K",
        "blocksize-maximum=128K",
        "blocksize-error-policy=error",
    ];
    let old = site.old("old", 9 * MIB);
    let peer = Peer::nbdkit(&[&["--filter=blocksize-policy", "file", &old], &sizes[..]].concat());
    program::proxy_client(&[
        "restore",
        backup.to_str().unwrap(),
        "--output",
        &peer.uri_text(""),
    ]);
    site.assert_copied(old.as_ref(), MIB - 513);
}

#[test]
fn zeroes_are_left_away_where_the_operator_vouches_for_them() {
    needs!("nbdkit");
    let site = Site::new();
    // Asked to zero, this server fails.
    let peer = Peer::nbdkit(&[
        "--filter=error",
        "memory",
        "32M",
        "error-zero=EIO",
        "error-zero-rate=100%",
    ]);
    copy(&["--target-is-zero", site.source(), &peer.uri_text("")]);
    let back = site.path("back");
    copy(&[&peer.uri_text(""), back.to_str().unwrap()]);
    site.assert_copied(&back, 0);
    fails("host-refused", &[site.source(), &peer.uri_text("")]);
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    needs!("nbdkit");
    let site = Site::new();
    let read_only = Peer::nbdkit(&["-r", "memory", "64M"]);
    fails("target-unfit", &[site.source(), &read_only.uri_text("")]);
    let small = Peer::nbdkit(&["memory", "1M"]);
    fails("target-too-small", &[site.source(), &small.uri_text("")]);
    fails("output-is-source", &[&small.uri_text(""), &small.uri_text("")]);
}

#[test]
fn frozen_images_and_origins_of_ours_are_copied() {
    let site = Site::new();
    let live = site.old("live", site.size());
    let host = Host::serve(&[
        &format!("vol={}", site.source()),
        "--origin",
        &format!("live={live}"),
        "--copy-area",
        &format!("{},size=64M", site.text("area")),
        "--socket",
        &site.text("socket"),
        "--control",
        &site.text("control"),
    ]);
    let target = site.path("target");
    let report = copy(&[host.uri("vol"), target.to_str().unwrap()]);
    assert_eq!(report["source_connections"], 4, "{report}");
    copy(&[host.uri("vol"), host.uri("live")]);
    let back = site.path("back");
    copy(&[host.uri("live"), back.to_str().unwrap()]);
    host.terminate();
    for copy in [&target, &back, &site.path("live")] {
        site.assert_copied(copy, 0);
    }
}

/// Passes on what one side says to the other, and gives back the last bytes of it.
fn pass(mut from: UnixStream, mut to: UnixStream) -> Vec<u8> {
    let (mut buffer, mut last) = (vec![0; 64 << 10], Vec::new());
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        last.extend_from_slice(&buffer[..length]);
        last.drain(..last.len().saturating_sub(28));
    }
    to.shutdown(std::net::Shutdown::Both).ok();
    last
}

/// A socket in front of a server, and the last 28 bytes of every client: a request of nothing but a header.
fn overheard(server: &Peer, at: &Path) -> mpsc::Receiver<Vec<u8>> {
    let listener = UnixListener::bind(at).unwrap();
    let server = server.socket().to_owned();
    let (to_test, lasts) = mpsc::channel();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), UnixStream::connect(&server).unwrap());
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass(back.0, back.1));
            let to_test = to_test.clone();
            thread::spawn(move || to_test.send(pass(client, server)).ok());
        }
    });
    lasts
}

#[test]
fn whoever_copies_says_goodbye_whether_it_went_well_or_not() {
    needs!("nbdkit");
    let site = Site::new();
    let good = Peer::nbdkit_file(&["-r"], &site.source, &[]);
    let bad = Peer::nbdkit(&["eval", "get_size=echo 4M", "pread=echo EIO >&2; exit 1"]);
    for (name, peer, connections, exit) in [("good", &good, 2, 0), ("bad", &bad, 1, 1)] {
        let socket = site.path(name);
        let lasts = overheard(peer, &socket);
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let output = program::run("proxy-client", &["copy", "--connections=2", &uri, "null:"]);
        assert_eq!(output.status.code(), Some(exit));
        let mut goodbyes = 0;
        while let Ok(last) = lasts.recv_timeout(Duration::from_secs(2)) {
            // The magic number of a request, no flags, NBD_CMD_DISC.
            goodbyes += u32::from(last.starts_with(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]));
        }
        assert_eq!(goodbyes, connections, "{name}");
    }
}
