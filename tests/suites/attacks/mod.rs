//! A backup while somebody works against it: in each case the image is right, or the command fails with the right exit
//! code and leaves nothing behind. Every attack is let in at named points, so that none is a matter of luck.

mod content;
mod host;
mod lun;
mod mapping;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tests::cutting_proxy::Cut;
use tests::disk::{Mounted, run};
use tests::site::{Site, text};
use tests::volume::noise;

const MIB: usize = 1 << 20;
/// Two batches, so that one is read while another is confirmed.
const SIZE: usize = 40 * MIB;

/// The first connection of a backup, cut when a MiB went over it: others carry bytes as well by then.
const MAIN: Cut = Cut {
    // The first one lists the contexts.
    connection: 1,
    after: MIB,
};

/// A volume on XFS, and its twin: another file with the same bytes in other blocks.
fn xfs_site() -> Site {
    let site = Site::new(Mounted::xfs(320 << 20), &noise(1, SIZE));
    fs::write(site.path("twin"), noise(1, SIZE)).unwrap();
    site
}

/// A volume on ext4.
fn ext4_site() -> Site {
    Site::new(Mounted::ext4(192 << 20), &noise(1, SIZE))
}

/// Overwrites all of a file, down to its disk.
fn overwrite(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    file.write_all_at(&noise(99, len), 0).unwrap();
    file.sync_all().unwrap();
}

/// Sets or clears the immutable flag.
fn set_immutable(path: &Path, immutable: bool) {
    run("chattr", &[if immutable { "+i" } else { "-i" }, text(path)]);
}

/// FIDEDUPERANGE of a whole file through a descriptor that is open for reading only: `file` shares the blocks of `twin`
/// from then on, if it is not refused.
fn deduplicate(file: &Path, twin: &Path) {
    let len = fs::metadata(file).unwrap().len();
    let command = format!("dedupe {} 0 0 {len}", twin.display());
    run("xfs_io", &["-r", "-c", &command, text(file)]);
}

/// Tries to open a file for writing. Whether that is refused at once is not what counts: it breaks a lease in either case.
fn knock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
}
