//! Whether somebody has a device for itself. What mounts, LVM, md and swap do has a name elsewhere; what is left, ZFS or a cluster's
//! file system for two, is seen by this alone.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::libc;

use super::family::Family;
use super::finding::{Finding, FindingKind, Severity};

const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(40);

/// A device of the family that cannot be opened exclusively. Where uses are known already they explain it.
pub(super) fn find(family: &Family<'_>, explained: bool) -> Vec<Finding> {
    if explained || family.lun.is_none() {
        return Vec::new();
    }
    let claimed = family.members.iter().filter(|member| {
        // A multipath map has its paths for itself.
        !family.is_held_by_map(member.device) && is_claimed(Path::new(&member.node))
    });
    claimed
        .map(|member| Finding {
            severity: Severity::Danger,
            kind: FindingKind::Claimed,
            device: member.node.clone(),
            message: format!(
                "{} is in use here, exclusively, and the system does not say by whom",
                member.node
            ),
            mend: "find out by whom (ZFS, a cluster file system, a storage daemon?), and stop it".to_owned(),
        })
        .collect()
}

/// Others look in the same way, for a moment: who has it for good is there the next time too.
fn is_claimed(node: &Path) -> bool {
    (0..LOOKS).all(|look| {
        if look > 0 {
            thread::sleep(PAUSE);
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
            .open(node);
        opened.is_err_and(|error: io::Error| error.raw_os_error() == Some(libc::EBUSY))
    })
}
