//! The two programs: an origin is frozen, backed up and thawed again and again while it is written to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tests::cow::log::{Change, Kind};
use tests::cow::served::{Served, assert_image};
use tests::cow::volume::{assert_same, make_volume};
use tests::disk::Mounted;
use tests::program::{Host, backup, error_object, nbd_export, proxy_client, start};
use tests::{needs, needs_loop_devices};

use super::SIZE;

/// A volume that is backed up in no time.
const SMALL: u64 = SIZE / 2;

/// What `list --json` tells of the sole origin and its sole frozen image. Gives the bytes used of the copy area.
fn assert_listed(served: &Served, id: &str, frozen_uuid: &serde_json::Value) -> u64 {
    let listed = served.list();
    let volume = &listed["volumes"][0];
    assert_eq!(
        (&volume["name"], &volume["kind"]),
        (&"vol".into(), &"origin".into())
    );
    assert_eq!(volume["size"], SMALL);
    assert_eq!(volume["copy_area"]["size"], SMALL);
    let frozen = &volume["frozen"][0];
    assert_eq!(frozen["export"], format!("vol@{id}"));
    assert_eq!((&frozen["uuid"], &frozen["state"]), (frozen_uuid, &"good".into()));
    assert_eq!(frozen["size"], SMALL);
    assert!(frozen["age_seconds"].as_u64().unwrap() < 600);
    assert_eq!(volume["frozen"].as_array().unwrap().len(), 1);
    volume["copy_area"]["used"].as_u64().unwrap()
}

#[test]
fn twenty_rounds_of_freeze_backup_and_thaw_under_writers_are_all_right() {
    needs!("zstd");
    let mut served = Served::new(SMALL);
    let writers = served.writers(2, 5, false);
    let mut uuids = BTreeSet::new();
    let (mut moved, mut used) = (0, 0);
    for round in 0..20 {
        writers.await_requests(10);
        let paused = writers.pause();
        let content = served.oracle.content();
        let id = format!("round-{round}");
        let uri = served.ask(&["freeze", "vol", "--as", &id]);
        drop(paused);
        let uri = uri.trim();
        assert!(uri.contains(&format!("/vol@{id}")), "{uri}");

        let report = served.assert_backs_up(uri, &content);
        let bytes = |field: &str| report[field].as_u64().unwrap();
        assert_eq!(bytes("size"), SMALL);
        assert!(bytes("bytes_direct") > 0 && bytes("validations") > 0, "{report}");
        moved += bytes("bytes_moved");
        assert!(uuids.insert(report["frozen"].as_str().unwrap().to_owned()));

        if round % 5 == 0 {
            used += assert_listed(&served, &id, &report["frozen"]);
        }
        served.ask(&["thaw", &format!("vol@{id}")]);
    }
    let listed = served.list();
    assert_eq!(listed["volumes"][0]["frozen"], serde_json::json!([]));
    assert_eq!(listed["volumes"][0]["copy_area"]["used"], 0);
    assert!(used > 0, "writers met frozen images");
    eprintln!("{moved} bytes moved under the proxy's hands");
    writers.stop();
    served.terminate();
    assert_same(
        &fs::read(served.path("origin")).unwrap(),
        &served.oracle.content(),
        "the origin",
    );
}

/// Overwrites a part of a live file, whose bytes then are known.
fn overwrite(path: &Path, content: &mut [u8], round: u8) {
    let file = File::options().write(true).open(path).unwrap();
    for start in (usize::from(round) * 4096..content.len() - 70_000).step_by(1 << 20) {
        content[start..start + 70_000].fill(round + 1);
        file.write_all_at(&content[start..start + 70_000], start as u64)
            .unwrap();
    }
}

#[test]
fn a_volume_that_is_not_frozen_at_start_is_frozen_on_request() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let xfs = Mounted::xfs(512 << 20);
    let path = |name: &str| xfs.outside().join(name).to_str().unwrap().to_owned();
    let (socket, control) = (path("nbd.sock"), path("control"));
    let volume = xfs.path.join("vm.img");
    let mut content = make_volume(&volume, SIZE);
    let identity = format!("{}=lun0", xfs.disk.device.display());
    let source = format!("vm={}", volume.display());
    let serve = ["--no-freeze", "--socket", &socket, "--control", &control];
    let host = Host::serve(&[&serve[..], &["--identity", &identity, &source]].concat());
    assert!(host.uris.is_empty(), "{:?}", host.uris);
    let ask = |verb: &[&str]| nbd_export(&[verb, &["--control", &control]].concat());

    let lun = format!("lun0={}", xfs.disk.lun.display());
    let mut frozen: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..4 {
        overwrite(&volume, &mut content, round);
        let uri = ask(&["freeze", "vm", "--as", &round.to_string()]);
        frozen.push((uri.trim().to_owned(), content.clone()));
        overwrite(&volume, &mut content, round + 100);
        // Two live at a time: both are right.
        for (uri, wanted) in &frozen {
            let image = path("image");
            let report = backup(&[uri, "--output", &image, "--lun", &lun]);
            assert_eq!(report["bytes_nbd"], 0, "{report}");
            assert_image(Path::new(&image), wanted);
            fs::remove_file(image).unwrap();
        }
        let listed: serde_json::Value = serde_json::from_str(&ask(&["list", "--json"])).unwrap();
        assert_eq!(
            listed["volumes"][0]["frozen"].as_array().unwrap().len(),
            frozen.len()
        );
        if round > 0 {
            frozen.remove(0);
            ask(&["thaw", &format!("vm@{}", round - 1)]);
        }
    }
    assert!(host.terminate().success());
    let left: Vec<PathBuf> = fs::read_dir(&xfs.path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, [volume], "no clone is left");
}

/// Writes go on while `restore` and `verify` read an image that was made meanwhile.
#[test]
fn an_image_made_under_writers_verifies_and_restores() {
    let served = Served::new(SIZE);
    let writers = served.writers(2, 11, false);
    writers.await_requests(20);
    let paused = writers.pause();
    let content = served.oracle.content();
    let uri = served.ask(&["freeze", "vol"]);
    drop(paused);
    let (image, restored) = (served.path("image"), served.path("restored"));
    backup(&[uri.trim(), "--output", &image]);
    proxy_client(&["verify", &image]);
    proxy_client(&["restore", &image, "--output", &restored]);
    assert_same(&fs::read(&restored).unwrap(), &content, "restored");
    writers.stop();
}

/// A writer that is faster than the backup fills the copy area: the backup stops before that costs it the frozen image, and is gone on with
/// when the writer rests.
#[test]
fn a_backup_stops_before_the_copy_area_is_full_and_can_be_resumed() {
    needs!("zstd");
    const VOLUME: u64 = 48 << 20;
    // Full after five seconds at the pace below, so that a machine that is slow comes near it as well.
    let mut served = Served::with_room(VOLUME, 16 << 20);
    let content = served.oracle.content();
    let uri = served.ask(&["freeze", "vol", "--as", "1"]);
    let image = served.path("image");
    // Without LUNs batches are small, so that there is something to keep after a second or two.
    let arguments = [
        "backup",
        uri.trim(),
        "--output",
        &image,
        "--limit-rate",
        "2M",
        "--error-format",
        "json",
    ];
    let mut job = start("proxy-client", &arguments, Stdio::null());
    let partial = format!("{image}.partial");
    job.wait_for(Path::new(&partial));
    while fs::metadata(&partial).unwrap().len() < 4 << 20 {
        assert!(job.is_alive());
        std::thread::sleep(Duration::from_millis(20));
    }
    let writer = served.client();
    for offset in (0..VOLUME).step_by(64 << 10) {
        if !job.is_alive() {
            break;
        }
        let kind = Kind::Write(*b"hurries!");
        writer.change(Change {
            offset,
            len: 64 << 10,
            kind,
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = job.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(error_object(&ended)["kind"], "copy-area-filling", "{ended:?}");
    let listed = served.list();
    assert_eq!(listed["volumes"][0]["frozen"][0]["state"], "good", "{listed}");
    // What is full and fills no more does not stop it.
    let resumed = proxy_client(&["resume", &image, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&resumed).unwrap();
    assert_eq!(report["size"], VOLUME);
    assert_image(Path::new(&image), &content);
    served.ask(&["thaw", "vol@1"]);
    served.terminate();
}
