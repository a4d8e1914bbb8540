//! Images served over NBD: as foreign clients see them, damaged ones, and what is written over them.

mod listeners;
mod overlay;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tests::disk::{self, Scratch, run};
use tests::program::{self, Host, fails};
use tests::site::text;
use tests::{digest, image, needs, volume};

const MIB: u64 = 1 << 20;

/// An image of a small volume with holes.
struct Ground {
    directory: Scratch,
    image: PathBuf,
}

impl Ground {
    fn new() -> Self {
        let directory = disk::scratch();
        let volume = directory.path().join("volume");
        volume::motley(&volume);
        let image = image::of(&volume);
        Self { directory, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Serves the image at a Unix socket.
    fn serve(&self, more: &[&str]) -> Host {
        let socket = self.path("socket");
        let own = [text(&self.image), "--socket", text(&socket)];
        Host::serve_images(&[&own, more].concat())
    }
}

/// Runs a command of qemu-io against an export, whatever comes of it.
fn qemu_io(uri: &str, options: &[&str], command: &str) -> Output {
    let base = [&["-f", "raw", "-d", "unmap"], options, &["-c", command, uri]].concat();
    Command::new("qemu-io").args(base).output().unwrap()
}

fn can_read(uri: &str, offset: u64, length: u64) -> bool {
    let output = qemu_io(uri, &["-r"], &format!("read {offset} {length}"));
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() || told.contains("Input/output error"),
        "{told}"
    );
    output.status.success()
}

fn assert_same(one: &Path, other: &Path) {
    assert_eq!(digest::of_file(one), digest::of_file(other));
}

#[test]
fn foreign_clients_read_an_image() {
    needs!("nbdcopy", "nbdinfo", "qemu-img");
    let ground = Ground::new();
    let host = ground.serve(&[]);
    let uri = host.uri("volume");
    let (volume, copy) = (ground.path("volume"), ground.path("copy"));
    run("nbdcopy", &[uri, text(&copy)]);
    assert_same(&copy, &volume);
    assert!(
        volume::allocated(&copy) <= volume::allocated(&volume),
        "holes stay holes"
    );
    let qcow = ground.path("qcow2");
    run(
        "qemu-img",
        &["convert", "-f", "raw", uri, "-O", "qcow2", text(&qcow)],
    );
    let compared = ["compare", "-f", "raw", "-F", "qcow2", text(&volume), text(&qcow)];
    assert!(run("qemu-img", &compared).contains("identical"));

    let about: Value = serde_json::from_str(&run("nbdinfo", &["--json", uri])).unwrap();
    let about = &about["exports"][0];
    assert_eq!(
        (&about["is_read_only"], &about["export-size"]),
        (&true.into(), &(32 * MIB).into())
    );
    let told = about["description"].as_str().unwrap();
    let inspected: Value = serde_json::from_str(&program::proxy_client(&[
        "inspect",
        "--json",
        text(&ground.image),
    ]))
    .unwrap();
    assert!(
        told.contains(inspected["root"].as_str().unwrap_or("no root")),
        "{told} {inspected}"
    );

    // What the image calls a hole is one; whatever is called data is what its records say.
    let map: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", uri])).unwrap();
    let mut at = 0;
    let mut data = 0;
    let bytes = std::fs::read(&volume).unwrap();
    for entry in map.as_array().unwrap() {
        let field = |name: &str| usize::try_from(entry[name].as_u64().unwrap()).unwrap();
        assert_eq!(field("offset"), at);
        at += field("length");
        match field("type") {
            0 => data += field("length"),
            3 => assert!(bytes[field("offset")..at].iter().all(|byte| *byte == 0)),
            other => panic!("status {other}"),
        }
    }
    assert_eq!(at as u64, 32 * MIB);
    assert!((data as u64) < 8 * MIB, "{map}");
    let mapped: Value =
        serde_json::from_str(&run("qemu-img", &["map", "-f", "raw", "--output=json", uri])).unwrap();
    assert!(
        mapped
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["zero"] == true)
    );
    assert!(host.terminate().success());
}

#[test]
fn a_frame_that_is_not_what_was_written_is_an_error_and_the_rest_is_read() {
    needs!("qemu-io");
    let ground = Ground::new();
    // The last data frame: that of the 4 MiB from 20 MiB on.
    let bytes = std::fs::read(&ground.image).unwrap();
    let at = bytes.len() - bytes.len() / 8;
    let file = File::options().write(true).open(&ground.image).unwrap();
    let flip = || file.write_all_at(&[!bytes[at]], at as u64).unwrap();

    let host = ground.serve(&[]);
    let uri = host.uri("volume");
    assert!(can_read(uri, 3 * MIB, MIB));
    // While it is served, and before anybody has read it.
    flip();
    let bad: Vec<u64> = (20..24).filter(|mib| !can_read(uri, mib * MIB, MIB)).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(can_read(uri, 3 * MIB, 2 * MIB) && can_read(uri, 0, 70_000));
    let copy = ground.path("copy");
    let error = fails("proxy-client", 1, &["copy", uri, text(&copy)]);
    assert_eq!(error["kind"], "host-refused", "{error}");
    image::assert_nothing_left(&copy);
    // Written again, it is good again: nothing of the failure is kept.
    file.write_all_at(&bytes, 0).unwrap();
    assert!(can_read(uri, bad[0] * MIB, MIB));
    // Cut while it is served.
    file.set_len(at as u64).unwrap();
    let uncached = (20..24).filter(|mib| !can_read(uri, mib * MIB, MIB)).count();
    assert!(uncached <= 4);
    drop(host);
    fails(
        "proxy-client",
        6,
        &["serve", text(&ground.image), "--socket", text(&ground.path("t"))],
    );
    assert!(!ground.path("t").exists());
}

#[test]
fn what_could_not_be_read_is_an_error_and_never_zeroes() {
    needs!("qemu-io", "nbdinfo", "nbdcopy");
    let ground = Ground::new();
    let bad = 3 * MIB + 8192..3 * MIB + 16_384;
    let fail = format!(
        "pread=if [ $4 -lt {} ] && [ $(( $4 + $3 )) -gt {} ]; then echo EIO bad sector >&2; exit 1; fi; \
         dd if={} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none",
        bad.end,
        bad.start,
        ground.path("volume").display()
    );
    let size = format!("get_size=echo {}", 32 * MIB);
    let server = tests::peer::Peer::nbdkit(&["-r", "eval", &size, &fail]);
    let image = ground.path("gaps.vbi.zst");
    let output = program::run(
        "proxy-client",
        &["backup", &server.uri_text(""), "--output", text(&image)],
    );
    assert_eq!(output.status.code(), Some(3));

    let host = Host::serve_images(&[text(&image), "--socket", text(&ground.path("socket"))]);
    let uri = host.uri("gaps");
    assert!(!can_read(uri, 3 * MIB, MIB) && !can_read(uri, bad.start + 4096, 4096));
    assert!(can_read(uri, 3 * MIB, 8192) && can_read(uri, bad.end, MIB));
    let map: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", uri])).unwrap();
    let told = map.as_array().unwrap().iter().find(|entry| {
        let start = entry["offset"].as_u64().unwrap();
        (start..start + entry["length"].as_u64().unwrap()).contains(&bad.start)
    });
    assert_eq!(told.unwrap()["type"], 0, "no client may skip it for a hole");
    let copied = Command::new("nbdcopy")
        .args([uri, text(&ground.path("copy"))])
        .output()
        .unwrap();
    assert!(!copied.status.success());
}
