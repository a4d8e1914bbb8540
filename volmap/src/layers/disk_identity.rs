//! What names a disk for good, as the disk or its driver tells it.

use std::io;
use std::path::Path;

use super::designators::{best_designator, unit_serial};
use super::sysfs::Sysfs;
use crate::identity::Identity;
use crate::sys::DeviceNumber;

/// Attributes that may name a disk: NVMe's own, SCSI's page 83 as the kernel has it in its memory, the serial number of virtio-blk.
pub(super) const ATTRIBUTES: [&str; 3] = ["wwid", "device/wwid", "serial"];

/// Asks a SCSI disk for a page of its vital product data: the node, its device number, the page.
pub(super) type AskDisk = dyn Fn(&Path, DeviceNumber, u8) -> io::Result<Vec<u8>> + Send + Sync;

/// The identity of a whole disk; or why it has none that counts, and what can be done.
///
/// # Errors
/// Sysfs cannot be read.
pub(super) fn of_disk(
    sysfs: &Sysfs,
    ask_disk: &AskDisk,
    disk: DeviceNumber,
) -> io::Result<Result<Identity, String>> {
    let node = sysfs.node(disk);
    let node = node.display();
    let declare = format!("where a proxy sees the same disk, declare it: --identity {node}=NAME");
    let identity = if sysfs.attribute(disk, "device/scsi_level")?.is_some() {
        of_scsi_disk(sysfs, ask_disk, disk)?.map_err(|why| format!("{node} {why}; {declare}"))
    } else if sysfs.attribute(disk, "nsid")?.is_some() {
        let wwid = sysfs.attribute(disk, "wwid")?;
        // Without these the kernel makes a name up, of vendor, model, serial number and namespace; not every device has one of its own.
        let own = wwid.as_deref().and_then(|wwid| from_wwid(wwid, &["eui", "uuid"]));
        own.ok_or_else(|| {
            format!(
                "{node} is an NVMe namespace without NGUID, EUI-64 and UUID, or with none that Linux believes (as those of QEMU); {declare}"
            )
        })
    } else {
        let serial = sysfs.attribute(disk, "serial")?;
        let serial = serial.and_then(|serial| from_serial(&serial));
        serial.ok_or_else(|| format!("{node} has no identity of its own; {declare}"))
    };
    let Ok(identity) = identity else {
        return Ok(identity);
    };
    Ok(match twin(sysfs, disk)? {
        Some(twin) => Err(format!(
            "{node} and {} both are {identity}, though they differ in size or block size: two disks under one name; {declare}",
            sysfs.node(twin).display()
        )),
        None => Ok(identity),
    })
}

/// The disk itself is asked: what the kernel remembers may be of the LUN that was there before.
fn of_scsi_disk(
    sysfs: &Sysfs,
    ask_disk: &AskDisk,
    disk: DeviceNumber,
) -> io::Result<Result<Identity, String>> {
    let node = sysfs.node(disk);
    let page = match ask_disk(&node, disk, 0x83) {
        Ok(page) => page,
        Err(error) => {
            return Ok(Err(format!(
                "does not answer who it is (INQUIRY, page 83h: {error})"
            )));
        }
    };
    let serial = ask_disk(&node, disk, 0x80)
        .ok()
        .and_then(|page| unit_serial(&page));
    let Some(identity) = best_designator(&page, serial.as_deref()) else {
        let why = "has no NAA, EUI-64, or vendor and serial number among its designators (INQUIRY, page 83h)";
        return Ok(Err(why.to_owned()));
    };
    let remembered = sysfs.attribute(disk, "device/wwid")?;
    let remembered = remembered.and_then(|wwid| from_wwid(&wwid, &["naa", "eui", "t10"]));
    let kind = |identity: &Identity| identity.as_str().split(':').next().map(str::to_owned);
    Ok(match remembered {
        Some(other)
            if kind(&other) == kind(&identity)
                && other != identity
                && !is_other_designator(&page, &other) =>
        {
            Err(format!(
                "says that it is {identity}, and the kernel still takes it for {other}: the LUN was changed under it; rescan it \
                 (echo 1 > /sys/block/…/device/rescan), or remove and add it"
            ))
        }
        _ => Ok(identity),
    })
}

/// Whether a name is one of several that a disk has.
fn is_other_designator(page: &[u8], identity: &Identity) -> bool {
    super::designators::all(page).any(|designator| designator == *identity)
}

/// `naa.5000c500deadbeef`, `eui.…`, `t10.…`, `nvme.…`, `uuid.…`: the type ends at the first dot. Only some types count.
fn from_wwid(text: &str, kinds: &[&str]) -> Option<Identity> {
    let (kind, value) = text.split_once('.')?;
    let value = match kind {
        // The kernel has digits in capitals where the disk has its name as text, too.
        "naa" | "eui" => value.trim().to_ascii_lowercase(),
        _ => value.trim().to_owned(),
    };
    Identity::new(kind, &value).ok().filter(|_| kinds.contains(&kind))
}

/// What drivers and makers write where they know nothing: as many disks have it as there are.
const NO_NAMES: [&str; 7] = [
    "(null)",
    "null",
    "none",
    "unknown",
    "n/a",
    "default string",
    "to be filled by o.e.m.",
];

/// A serial number that tells one disk from others: not a word for none, nor nothing but noughts and dashes.
fn from_serial(text: &str) -> Option<Identity> {
    let serial = text.trim();
    let tells = serial.chars().any(|c| c.is_alphanumeric() && c != '0');
    let is_word_for_none = NO_NAMES.iter().any(|none| serial.eq_ignore_ascii_case(none));
    Identity::new("serial", serial)
        .ok()
        .filter(|_| tells && !is_word_for_none)
}

/// Another disk that has the same name and cannot be the same disk. One of the same size may be another path to it.
fn twin(sysfs: &Sysfs, disk: DeviceNumber) -> io::Result<Option<DeviceNumber>> {
    let names = |device| -> io::Result<Vec<Option<String>>> {
        ATTRIBUTES
            .into_iter()
            .map(|name| sysfs.attribute(device, name))
            .collect()
    };
    let geometry = |device| -> io::Result<_> {
        Ok((
            sysfs.size(device)?,
            sysfs.attribute(device, "queue/logical_block_size")?,
        ))
    };
    let (own_names, own_geometry) = (names(disk)?, geometry(disk)?);
    if own_names.iter().all(Option::is_none) {
        return Ok(None);
    }
    for other in sysfs.disks()? {
        // A disk that goes away meanwhile is no twin.
        if other != disk
            && names(other).is_ok_and(|names| names == own_names)
            && geometry(other).is_ok_and(|geometry| geometry != own_geometry)
        {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wwid_is_split_at_its_type() {
        let text = |wwid| from_wwid(wwid, &["naa", "eui", "t10"]).map(|identity| identity.to_string());
        assert_eq!(
            text("naa.5000c500deadbeef").as_deref(),
            Some("naa:5000c500deadbeef")
        );
        assert_eq!(
            text("naa.5000C5003011CB2B").as_deref(),
            Some("naa:5000c5003011cb2b")
        );
        assert_eq!(
            text("eui.0025385b71b0a1c3").as_deref(),
            Some("eui:0025385b71b0a1c3")
        );
        assert_eq!(
            text("t10.ATA     QEMU HARDDISK").as_deref(),
            Some("t10:ATA%20%20%20%20%20QEMU%20HARDDISK")
        );
        assert_eq!(text("nvme.1af4-7365-51-00000001"), None);
        assert_eq!(text("0QEMU"), None);
    }

    #[test]
    fn what_stands_for_no_serial_number_is_none() {
        for none in [
            "",
            "  ",
            "(null)",
            "0000000000",
            "----",
            "None",
            "UNKNOWN",
            "Default string",
        ] {
            assert_eq!(from_serial(none), None, "{none}");
        }
        for (serial, told) in [
            ("lun0", "serial:lun0"),
            (" BTPY652506Q21P9N ", "serial:BTPY652506Q21P9N"),
            ("00a0", "serial:00a0"),
        ] {
            assert_eq!(from_serial(serial).unwrap().as_str(), told);
        }
    }
}
