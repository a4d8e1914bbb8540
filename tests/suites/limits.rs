//! Limits that are changed while a backup runs.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use tests::disk::scratch;
use tests::peer::Peer;
use tests::program::{fails, start};
use tests::site::text;
use tests::{image, needs, volume};

#[test]
fn a_backup_follows_a_file_of_limits() {
    needs!("nbdkit", "zstd");
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    let (volume, limits, output) = (at("volume"), at("limits.toml"), at("image"));
    volume::motley(&volume);
    let peer = Peer::nbdkit_file(&[], &volume, &[]);
    let uri = peer.uri_text("");
    let backup = [
        "backup",
        &uri,
        "--output",
        text(&output),
        "--limits",
        text(&limits),
    ];

    let missing = fails("proxy-client", 2, &backup);
    assert_eq!(missing["kind"], "usage");
    fs::write(&limits, "limit-rate = \"quick\"\n").unwrap();
    let wrong = fails("proxy-client", 2, &backup);
    assert!(
        wrong["message"].as_str().unwrap().contains("limit-rate"),
        "{wrong}"
    );

    // At this rate it would take days.
    fs::write(&limits, "limit-rate = \"10\"\n").unwrap();
    let mut running = start("proxy-client", &backup, Stdio::null());
    running.wait_for(&at("image.partial"));
    sleep(Duration::from_secs(2));
    assert!(!output.exists());
    fs::write(&limits, "").unwrap();
    assert!(running.wait().status.success());
    image::assert_holds(&output, &volume);
}
