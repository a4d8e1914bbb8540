//! One look at several devices: tables that somebody else makes sense of, and the chains under some of them, with one witness.

use std::io;

use super::block_chain::BlockChain;
use super::witness::Fact;
use crate::store::StoreId;
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::TargetLine;

/// See the module. What is looked at belongs to the witness from then on.
pub(crate) struct DeviceWalk<'a> {
    pub(super) chain: BlockChain<'a>,
}

impl DeviceWalk<'_> {
    /// The live table of a device-mapper device.
    ///
    /// # Errors
    /// No device-mapper, not root, no such device.
    pub(crate) fn table(&mut self, device: DeviceNumber) -> io::Result<Vec<TargetLine>> {
        // Armed for events before the first table is read.
        let mapper = self.chain.mapper()?;
        let status = mapper.device_status(device)?;
        let table = mapper.table(device)?;
        self.chain.witness.remember(Fact::Table {
            mapper,
            device,
            status,
            table: table.clone(),
        });
        Ok(table)
    }

    /// The store that a device is, and all that lies under it.
    ///
    /// # Errors
    /// Sysfs cannot be read. Whatever else is wrong makes the store opaque.
    pub(crate) fn store(&mut self, device: DeviceNumber) -> io::Result<StoreId> {
        self.chain.resolve(device)
    }
}
