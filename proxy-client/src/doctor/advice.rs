//! How to keep a system's hands off a LUN.

use std::path::Path;

/// What keeps the system from taking into use what a LUN holds.
pub(super) fn keep_off(what: &str, path: &Path) -> String {
    let path = path.display();
    if what.contains("LVM") {
        format!(
            "keep LVM away from it: with a devices file (use_devicesfile=1 in lvm.conf) lvmdevices --deldev {path}, else \
             devices {{ global_filter = [ \"r|^{path}$|\" ] }} with a name from /dev/disk/by-id; then update the initramfs"
        )
    } else if what.contains("md array") {
        "have no array assembled from it: \"AUTO -all\" in /etc/mdadm/mdadm.conf; then update the initramfs"
            .to_owned()
    } else if what.contains("swap") {
        "keep it out of /etc/fstab, and systemd off it: systemd.swap=0, or the partition's no-auto flag"
            .to_owned()
    } else {
        "keep it out of /etc/fstab, and desktops off it: ENV{UDISKS_IGNORE}=\"1\" in a rule of udev"
            .to_owned()
    }
}

/// What makes a LUN read-only as soon as it appears.
pub(super) fn make_read_only(wwid: Option<&str>, name: &str) -> String {
    let matched = match wwid {
        Some(wwid) => format!("ATTRS{{wwid}}==\"{wwid}\""),
        None => format!("KERNEL==\"{name}\""),
    };
    format!(
        "to have it read-only always, in /etc/udev/rules.d/90-proxy-client.rules: SUBSYSTEM==\"block\", ACTION==\"add|change\", \
         {matched}, RUN+=\"/sbin/blockdev --setro $devnode\""
    )
}
