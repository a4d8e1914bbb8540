//! The host goes away, or another frozen image stands where one was.

use std::path::Path;
use std::sync::{Arc, Mutex};

use proxy_client::error::ErrorKind;
use tests::ambush::{Ambush, Point};
use tests::cutting_proxy::CuttingProxy;
use tests::needs_loop_devices;
use tests::program::{Host, nbd_export};
use tests::site::{VOLUME, run_backup, text};

use super::{MAIN, overwrite, xfs_site};

#[test]
fn a_host_that_does_not_come_back_fails_the_backup() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    site.serve(&[]);
    let host = site.take_host();
    let ambush = Ambush::new(Point::AfterRead, 1, move || host.kill());
    let error = site.assert_failed(site.backup(&ambush), ErrorKind::HostLost);
    assert!(ambush.has_sprung());
    assert_eq!(error.kind().exit_code(), 1);
}

#[test]
fn a_host_that_was_killed_and_restarted_has_another_frozen_image() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    for point in Point::ALL {
        let mut site = xfs_site();
        site.serve(&[]);
        let host = site.take_host();
        let (arguments, volume) = (site.serve_arguments(), site.volume());
        // Declared behind the site, so that the new host ends before its file system does.
        let restarted = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&restarted);
        let ambush = Ambush::new(point, 1, move || {
            host.kill();
            overwrite(&volume);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            *slot.lock().unwrap() = Some(Host::serve(&arguments));
        });
        let error = site.assert_failed(site.backup(&ambush), ErrorKind::FrozenImageGone);
        assert!(ambush.has_sprung());
        assert_eq!(error.kind().exit_code(), 5);
        drop(ambush);
        restarted.lock().unwrap().take();
    }
}

/// The export of the frozen image that is taken away.
const MONDAY: &str = "vm@monday";

/// Thaws the frozen image, lets the volume change, and freezes it again under the same name.
fn refreeze(control: &Path, volume: &Path) {
    let control = text(control);
    nbd_export(&["thaw", MONDAY, "--control", control]);
    overwrite(volume);
    nbd_export(&["freeze", VOLUME, "--as", "monday", "--control", control]);
}

#[test]
fn another_frozen_image_under_the_same_name_is_not_gone_on_with() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    for point in Point::ALL {
        let mut site = xfs_site();
        site.serve(&["--no-freeze"]);
        let (control, volume) = (site.control(), site.volume());
        nbd_export(&["freeze", VOLUME, "--as", "monday", "--control", text(&control)]);
        let ambush = Ambush::new(point, 1, move || refreeze(&control, &volume));
        let outcome = run_backup(&site.options(&site.uri(MONDAY)), &ambush);
        site.assert_failed(outcome, ErrorKind::FrozenImageGone);
        assert!(ambush.has_sprung());
    }
}

/// Nothing but the UUID tells the two apart here: the old connection is cut before the host can say that its frozen
/// image is gone, and over NBD there are no generations to compare. Going on would mix two instants.
#[test]
fn a_lost_connection_is_taken_up_to_the_same_frozen_image_only() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    site.serve(&["--no-freeze"]);
    let (control, volume) = (site.control(), site.volume());
    nbd_export(&["freeze", VOLUME, "--as", "monday", "--control", text(&control)]);
    let relay = CuttingProxy::with_action(&site.socket(), MAIN, move || refreeze(&control, &volume));
    let mut options = site.options(&relay.uri(MONDAY));
    options.luns.clear();
    // On another one the host could say that the image is gone.
    options.nbd.connections = 1;
    let error = site.assert_failed(run_backup(&options, &Ambush::never()), ErrorKind::FrozenImageGone);
    assert!(relay.connections() > 2, "it has to be cut");
    assert_eq!(error.kind().exit_code(), 5);
}

#[test]
fn a_lost_connection_to_a_host_that_stays_costs_nothing() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    site.serve(&[]);
    let relay = CuttingProxy::new(&site.socket(), MAIN);
    let mut options = site.options(&relay.uri(VOLUME));
    options.luns.clear();
    site.assert_right(run_backup(&options, &Ambush::never()));
    assert!(relay.connections() > 2, "it has to be cut");
}
