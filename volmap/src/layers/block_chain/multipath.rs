//! Multipath: one disk by several paths. The chain ends on the disk, not on a path.

use std::io;

use super::BlockChain;
use crate::identity::Identity;
use crate::layers::disk_identity;
use crate::layers::witness::Fact;
use crate::range::ByteRange;
use crate::store::StoreId;
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::DeviceStatus;

/// What multipath-tools puts before the WWID in the UUID of a map.
const UUID_PREFIX: &str = "mpath-";

impl BlockChain<'_> {
    /// The disk that all paths lead to; or why there is none.
    pub(super) fn multipath(
        &mut self,
        device: DeviceNumber,
        status: &DeviceStatus,
        range: ByteRange,
        paths: &[DeviceNumber],
    ) -> io::Result<Result<StoreId, String>> {
        let size = self.sysfs.size(device)?;
        if (range.start(), range.end()) != (0, size) {
            return Ok(Err("its multipath target is not all of it".to_owned()));
        }
        let mut agreed: Option<(Identity, String)> = None;
        for &path in paths {
            let node = self.sysfs.node(path).display().to_string();
            let names = disk_identity::ATTRIBUTES.into_iter().chain(["size"]);
            self.witness.remember(Fact::attributes(self.sysfs, path, names)?);
            let identity = match disk_identity::of_disk(self.sysfs, self.ask_disk, path)? {
                Ok(identity) => identity,
                Err(why) => {
                    return Ok(Err(format!(
                        "one of its paths does not say which disk it leads to: {why}"
                    )));
                }
            };
            if self.sysfs.size(path)? != size {
                return Ok(Err(format!("its path {node} leads to a disk of another size")));
            }
            match &agreed {
                Some((other, first)) if *other != identity => {
                    return Ok(Err(format!(
                        "its paths {first} ({other}) and {node} ({identity}) lead to different disks"
                    )));
                }
                Some(_) => {}
                None => agreed = Some((identity, node)),
            }
        }
        let Some((identity, first)) = agreed else {
            return Ok(Err("it has no paths".to_owned()));
        };
        if contradicts(&status.uuid, &identity) {
            return Ok(Err(format!(
                "it was set up for {}, but its path {first} leads to {identity}",
                status.uuid
            )));
        }
        self.disk(device, identity).map(Ok)
    }
}

/// Whether the UUID of a map names another disk than its paths do. Of a WWID by multipath-tools the first digit is the type of the
/// designator: 2 for EUI-64, 3 for NAA; others are not compared.
fn contradicts(uuid: &str, identity: &Identity) -> bool {
    let Some(wwid) = uuid.strip_prefix(UUID_PREFIX) else {
        return false;
    };
    let named = match (wwid.as_bytes().first(), wwid.get(1..)) {
        (Some(b'2'), Some(value)) => Identity::new("eui", value),
        (Some(b'3'), Some(value)) => Identity::new("naa", value),
        _ => return false,
    };
    let kind = |identity: &Identity| identity.as_str().split(':').next().map(str::to_owned);
    named.is_ok_and(|named| kind(&named) == kind(identity) && named != *identity)
}
