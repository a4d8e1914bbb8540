//! The programs on real kernels: `nbd-export` in User-Mode Linux guests, the proxy outside on the file that is their disk, or in a
//! guest of its own. A test boots once, and plays its scenarios one after the other in that guest.

mod around;
mod doctor;
mod free_space;
mod guests;
mod identities;
mod iscsi;
mod layers;
mod lineage;
mod linear;
mod lvm_cleanup;
mod lvm_sets;
mod lvm_snapshot;
mod lvm_strength;
mod lvm_thin;
mod moves;
mod nbd_client;
mod two_machines;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_export::uri::NbdUri;
use proxy_client::config::{ImagePath, LunArgument};
use proxy_client::error::Error;
use proxy_client::job::backup::BackupOptions;
use proxy_client::report::BackupReport;
use proxy_client::transport::direct::LunOpener;
use tests::disk::run;
use tests::guest::Guest;
use tests::site::{run_backup, text};

const MIB: u64 = 1 << 20;

/// SHA-256 of what a command in the guest writes to stdout.
fn sha256_in(guest: &Guest, command: &str) -> String {
    guest.run(&format!("{command} | sha256sum"))
}

/// SHA-256 of what a device in the guest holds, past every cache.
fn sha256_of_device(guest: &Guest, device: &str) -> String {
    sha256_in(guest, &format!("dd if={device} iflag=direct bs=1M status=none"))
}

/// SHA-256 of what stock zstd makes of an image.
fn sha256_of_image(image: &Path) -> String {
    run(
        "bash",
        &[
            "-o",
            "pipefail",
            "-c",
            "zstd -dcq -- \"$0\" | sha256sum",
            text(image),
        ],
    )
}

/// A backup from LUNs, in this process, which must not have been made yet.
fn backup(
    uri: &str,
    image: &Path,
    luns: &[(&str, PathBuf)],
    opener: &dyn LunOpener,
) -> Result<BackupReport, Error> {
    let luns = luns.iter().map(|(identity, path)| {
        let argument = format!("{identity}={}", path.display());
        LunArgument::parse(&argument).unwrap()
    });
    let options = BackupOptions {
        luns: luns.collect(),
        // An ambush works in a guest while a read waits for it, and a slow machine takes minutes for that.
        direct_timeout: Duration::from_secs(900),
        ..BackupOptions::new(uri.parse::<NbdUri>().unwrap(), ImagePath::File(image.to_owned()))
    };
    run_backup(&options, opener)
}

/// The image holds those bytes; it is removed then.
fn assert_image(image: &Path, sha256: &str, report: &BackupReport) {
    assert_eq!(
        sha256_of_image(image),
        sha256,
        "the image is not the frozen volume: {report:?}"
    );
    std::fs::remove_file(image).unwrap();
}

/// The sole URI that a host printed.
fn sole(uris: &[String]) -> &str {
    let [uri] = uris else { panic!("{uris:?}") };
    uri
}
