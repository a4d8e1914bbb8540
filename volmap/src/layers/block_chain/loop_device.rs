//! Loop devices: a stretch of a file that is declared to be a disk, or of a block device.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::{BlockChain, by_number};
use crate::identity::Identity;
use crate::layers::witness::Fact;
use crate::store::{Below, Store, StoreId, StoreKind};
use crate::sys::{DeviceNumber, loop_device};

impl BlockChain<'_> {
    pub(super) fn loop_device(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
        let kind = StoreKind::Loop;
        let sysfs = self.sysfs;
        let node = sysfs.node(device);
        let opened = File::open(&node).and_then(|file| {
            if DeviceNumber::from_stat(file.metadata()?.rdev()) != device {
                return Err(io::Error::other(format!("{} is another device", node.display())));
            }
            Ok((loop_device::status(&file)?, file))
        });
        let (status, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let reason = format!(
                    "the backing file of {} cannot be asked for: {error}",
                    node.display()
                );
                return self.opaque(device, kind, None, reason);
            }
        };
        let path = sysfs
            .attribute(device, "loop/backing_file")?
            .unwrap_or_else(|| "its backing file".to_owned());
        self.witness
            .remember(Fact::attributes(sysfs, device, ["size", "diskseq"])?);
        self.witness.remember(Fact::Loop { device, file, status });
        let no_device = DeviceNumber { major: 0, minor: 0 };
        let disk = if status.backing_block_device != no_device {
            if !status.direct_io {
                // Coherent with a file's other readers on this machine, but no other machine sees this page cache.
                let reason = format!(
                    "{0} keeps what is written in the page cache of the device under it: losetup --direct-io=on {0}",
                    node.display()
                );
                return self.opaque(device, kind, None, reason);
            }
            self.resolve_at(status.backing_block_device, depth + 1)?
        } else if let Some((identity, size)) = self
            .declared
            .disk_file(status.backing_device, status.backing_inode)
        {
            self.graph.add(Store {
                kind: StoreKind::Disk,
                identity,
                label: path,
                size: size?,
                block_size: None,
                below: Below::Disk,
            })
        } else {
            // Nobody could tell that the backing file is moved or punched under the loop device.
            let reason = format!(
                "{0} is a loop device on {path}, which is not declared as a disk; where a proxy sees that file or \
                 the same device, declare it: --identity {path}=NAME or --identity {0}=NAME",
                node.display()
            );
            return self.opaque(device, kind, None, reason);
        };
        let mut name = format!("{}-{}", self.graph.store(disk).identity, status.offset);
        if status.size_limit != 0 {
            name = format!("{name}-{}", status.size_limit);
        }
        let identity = Identity::new("loop", &name).or_else(|_| by_number("loop", device))?;
        let below = self.one_segment(sysfs.size(device)?, disk, status.offset);
        self.add(device, kind, identity, below)
    }
}
