//! What names a disk for good, as its driver tells it.

use std::io;

use super::sysfs::Sysfs;
use crate::identity::Identity;
use crate::sys::DeviceNumber;

/// Attributes that may name a disk, best first: NVMe's own, SCSI's page 83, the serial number of virtio-blk.
pub(super) const ATTRIBUTES: [&str; 3] = ["wwid", "device/wwid", "serial"];

/// The identity of a whole disk, if its driver knows one.
///
/// # Errors
/// Sysfs cannot be read.
pub(super) fn of_disk(sysfs: &Sysfs, disk: DeviceNumber) -> io::Result<Option<Identity>> {
    for name in ATTRIBUTES {
        if let Some(text) = sysfs.attribute(disk, name)? {
            let identity = match name {
                "serial" => Identity::new("serial", &text),
                _ => from_wwid(&text),
            };
            if let Ok(identity) = identity {
                return Ok(Some(identity));
            }
        }
    }
    Ok(None)
}

/// `naa.5000c500deadbeef`, `eui.…`, `t10.…`, `nvme.…`, `uuid.…`: the type ends at the first dot.
fn from_wwid(text: &str) -> Result<Identity, crate::identity::IdentityError> {
    match text.split_once('.') {
        Some((kind @ ("naa" | "eui" | "t10" | "nvme" | "uuid"), value)) => Identity::new(kind, value.trim()),
        _ => Identity::new("wwid", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wwid_is_split_at_its_type() {
        let text = |wwid| from_wwid(wwid).unwrap().to_string();
        assert_eq!(text("naa.5000c500deadbeef"), "naa:5000c500deadbeef");
        assert_eq!(text("eui.0025385b71b0a1c3"), "eui:0025385b71b0a1c3");
        assert_eq!(
            text("t10.ATA     QEMU HARDDISK"),
            "t10:ATA%20%20%20%20%20QEMU%20HARDDISK"
        );
        assert_eq!(text("0QEMU.disk"), "wwid:0QEMU.disk");
    }
}
