//! To and from files and devices.

use tests::disk::LoopDisk;
use tests::peer::Peer;
use tests::{needs, needs_loop_devices};

use super::*;

#[test]
fn a_file_is_copied_and_keeps_its_holes() {
    let site = Site::new();
    let target = site.path("target");
    let report = copy(&[site.source(), target.to_str().unwrap()]);
    site.assert_copied(&target, 0);
    let (was, is) = (volume::allocated(&site.source), volume::allocated(&target));
    assert!(is <= was, "{is} bytes on disk, the source had {was}");
    // The written zeroes are found; with 0 they are data.
    assert!(
        report["bytes_data"].as_u64().unwrap() <= was - 290_000,
        "{report}"
    );
    let report = copy(&["--sparse", "0", site.source(), &site.text("as-it-is")]);
    assert!(report["bytes_data"].as_u64().unwrap() > was - 290_000, "{report}");
    site.assert_copied(&site.path("as-it-is"), 0);
}

#[test]
fn an_export_is_read_whatever_its_block_sizes() {
    needs!("nbdkit");
    let site = Site::new();
    for sizes in [
        &[
            "blocksize-minimum=4096",
            "blocksize-preferred=4096",
            "blocksize-maximum=64K",
        ][..],
        &[
            "blocksize-minimum=64K",
            "blocksize-preferred=1M",
            "blocksize-maximum=32M",
        ],
        &[
            "blocksize-minimum=1",
            "blocksize-preferred=512",
            "blocksize-maximum=512",
        ],
    ] {
        let parameters = [sizes, &["blocksize-error-policy=error"]].concat();
        let peer = Peer::nbdkit_file(&["--filter=blocksize-policy"], &site.source, &parameters);
        let target = site.path(sizes[0]);
        copy(&[&peer.uri_text(""), target.to_str().unwrap()]);
        site.assert_copied(&target, 0);
    }
}

#[test]
fn a_server_that_tells_no_holes_or_fails_to_is_read_wholly() {
    needs!("nbdkit");
    let site = Site::new();
    let without = [
        Peer::nbdkit_file(&["--filter=noextents"], &site.source, &[]),
        Peer::nbdkit_file(&["--no-sr"], &site.source, &[]),
        Peer::nbdkit_file(
            &["--filter=error"],
            &site.source,
            &["error-extents=EIO", "error-extents-rate=100%"],
        ),
    ];
    for (number, peer) in without.iter().enumerate() {
        let target = site.path(&format!("target{number}"));
        let report = copy(&["--sparse", "0", &peer.uri_text(""), target.to_str().unwrap()]);
        assert_eq!(report["bytes_data"], site.size(), "{report}");
        site.assert_copied(&target, 0);
    }
}

#[test]
fn what_is_there_is_not_overwritten_unasked() {
    let site = Site::new();
    let target = site.old("target", 64 * MIB);
    fails("target-not-empty", &[site.source(), &target]);
    copy(&["--force", site.source(), &target]);
    site.assert_copied(&site.path("target"), 0);
    fails("output-is-source", &["--force", site.source(), site.source()]);
    std::os::unix::fs::symlink(&site.source, site.path("link")).unwrap();
    fails(
        "output-is-source",
        &["--force", site.source(), &site.text("link")],
    );
    fails("target-unfit", &[site.source(), "/dev/null"]);
}

#[test]
fn old_data_of_a_device_do_not_survive() {
    needs_loop_devices!();
    let site = Site::new();
    for behind in [0, MIB] {
        let backing = site.old("backing", site.size() + behind);
        let device = LoopDisk::on(backing.as_ref(), &[]);
        let report = copy(&[site.source(), device.device.to_str().unwrap()]);
        assert_eq!(report["left_alone"], behind);
        site.assert_copied(backing.as_ref(), behind);
        copy(&[device.device.to_str().unwrap(), "null:"]);
    }
    let backing = site.old("backing", site.size() - 4096);
    let device = LoopDisk::on(backing.as_ref(), &[]);
    fails(
        "target-too-small",
        &[site.source(), device.device.to_str().unwrap()],
    );
    drop(device);
    assert!(
        std::fs::read(&backing)
            .unwrap()
            .iter()
            .all(|byte| *byte == volume::OLD)
    );
}
