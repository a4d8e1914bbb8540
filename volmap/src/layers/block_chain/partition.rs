//! Partitions: a stretch of a disk.

use std::io;

use super::{BlockChain, by_number};
use crate::identity::Identity;
use crate::layers::sysfs::SECTOR;
use crate::layers::witness::Fact;
use crate::store::{StoreId, StoreKind};
use crate::sys::DeviceNumber;

impl BlockChain<'_> {
    pub(super) fn partition(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
        let sysfs = self.sysfs;
        self.witness
            .remember(Fact::attributes(sysfs, device, ["partition", "start", "size"])?);
        let disk = self.resolve_at(sysfs.disk_of_partition(device)?, depth + 1)?;
        let offset = sysfs
            .number(device, "start")?
            .checked_mul(SECTOR)
            .ok_or(io::ErrorKind::InvalidData)?;
        let number = sysfs.number(device, "partition")?;
        let identity = Identity::new(
            "partition",
            &format!("{}-{number}", self.graph.store(disk).identity),
        );
        let below = self.one_segment(sysfs.size(device)?, disk, offset);
        let identity = identity.or_else(|_| by_number("partition", device))?;
        self.add(device, StoreKind::Partition, identity, below)
    }
}
