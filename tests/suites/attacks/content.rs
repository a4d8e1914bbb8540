//! The frozen image itself is lost while it is read: the backup stops with exit code 5 and leaves nothing.

use std::io;

use proxy_client::error::ErrorKind;
use tests::ambush::{Ambush, Point};
use tests::cutting_proxy::CuttingProxy;
use tests::needs_loop_devices;
use tests::program::nbd_export;
use tests::site::{Site, VOLUME, run_backup, text};

use super::{MAIN, SIZE, ext4_site, knock, overwrite, set_immutable, xfs_site};

/// Somebody opens a file that has lost its flag, for writing.
fn is_lost_by_a_writer(site: &Site, file: &std::path::Path, point: Point) {
    let victim = file.to_owned();
    let ambush = Ambush::new(point, 1, move || {
        set_immutable(&victim, false);
        let refused = knock(&victim).unwrap_err();
        assert_eq!(
            refused.kind(),
            io::ErrorKind::WouldBlock,
            "the lease keeps the writer out first"
        );
    });
    let error = site.assert_failed(site.backup(&ambush), ErrorKind::FrozenImageGone);
    assert!(ambush.has_sprung());
    assert_eq!(error.kind().exit_code(), 5);
}

#[test]
fn an_opener_of_the_clone_ends_the_backup() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    for point in Point::ALL {
        let mut site = xfs_site();
        site.serve(&[]);
        let clone = site.clone_of_volume();
        is_lost_by_a_writer(&site, &clone, point);
        // Its pages may still be on their way by reference: the writer waits for as long as the kernel has him wait.
        assert_eq!(knock(&clone).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_writer_of_a_quiesced_file_ends_the_backup() {
    needs_loop_devices!("mkfs.ext4", "zstd");
    for point in Point::ALL {
        let mut site = ext4_site();
        site.serve(&[]);
        is_lost_by_a_writer(&site, &site.volume(), point);
        knock(&site.volume()).expect("the host lets the writer in when the frozen image is given up");
    }
}

#[test]
fn a_writer_of_a_quiesced_file_is_kept_out_by_the_flag() {
    needs_loop_devices!("mkfs.ext4", "zstd");
    let mut site = ext4_site();
    site.serve(&[]);
    let volume = site.volume();
    let ambush = Ambush::new(Point::BeforeRead, 0, move || {
        let refused = knock(&volume).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    });
    let report = site.assert_right(site.backup(&ambush));
    assert!(ambush.has_sprung());
    assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
}

#[test]
fn a_writer_of_a_file_without_a_flag_ends_the_backup_on_every_connection() {
    needs_loop_devices!("mkfs.ext4", "zstd");
    let mut site = ext4_site();
    site.serve(&["--freeze", "static"]);
    // All of it goes over NBD; the connection is lost with the writer's knock, and the next one has to know of it.
    let volume = site.volume();
    let relay = CuttingProxy::with_action(&site.socket(), MAIN, move || {
        assert_eq!(knock(&volume).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
    let mut options = site.options(&relay.uri(VOLUME));
    options.nbd.connections = 1;
    let outcome = run_backup(&options, &Ambush::never());
    site.assert_failed(outcome, ErrorKind::FrozenImageGone);
    assert!(relay.connections() > 2, "it has to be cut");
    knock(&site.volume()).expect("the writer is let in");
    overwrite(&site.volume());
}

#[test]
fn a_thaw_ends_the_backup() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    for point in Point::ALL {
        let mut site = xfs_site();
        site.serve(&[]);
        let (control, volume) = (site.control(), site.volume());
        let ambush = Ambush::new(point, 1, move || {
            nbd_export(&["thaw", VOLUME, "--control", text(&control)]);
            overwrite(&volume);
        });
        site.assert_failed(site.backup(&ambush), ErrorKind::FrozenImageGone);
        assert!(ambush.has_sprung());
    }
}
