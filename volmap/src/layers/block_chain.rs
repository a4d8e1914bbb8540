//! From a block device down to its disks.

mod loop_device;
mod mapped_device;
mod multipath;
mod partition;

use std::io;
use std::sync::Arc;

use super::declared::Declared;
use super::disk_identity::{self, AskDisk};
use super::dm_table::DeviceMapper;
use super::sysfs::Sysfs;
use super::witness::{Fact, LayerWitness};
use crate::identity::Identity;
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, Store, StoreGraph, StoreId, StoreKind};
use crate::sys::DeviceNumber;

/// Deeper stacks are not followed. Real ones have four or five layers.
const DEPTH_MAX: usize = 16;

/// Gives a fresh view of the device-mapper, armed for events.
pub(super) type OpenMapper = dyn Fn() -> io::Result<Arc<dyn DeviceMapper>> + Send + Sync;

/// One walk from a volume down to its disks.
pub(super) struct BlockChain<'a> {
    pub(super) sysfs: &'a Sysfs,
    pub(super) declared: &'a Declared,
    pub(super) open_mapper: &'a OpenMapper,
    pub(super) ask_disk: &'a AskDisk,
    pub(super) graph: &'a mut StoreGraph,
    pub(super) witness: &'a mut LayerWitness,
    pub(super) mapper: Option<Arc<dyn DeviceMapper>>,
}

impl BlockChain<'_> {
    /// Adds a block device and all that lies under it.
    ///
    /// # Errors
    /// Sysfs cannot be read. Whatever else is wrong makes the store opaque.
    pub(super) fn resolve(&mut self, device: DeviceNumber) -> io::Result<StoreId> {
        self.resolve_at(device, 0)
    }

    fn resolve_at(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
        let sysfs = self.sysfs;
        if let Some(identity) = self.declared.block_device(device) {
            let identity = identity.clone();
            return self.disk(device, identity);
        }
        if depth == DEPTH_MAX {
            return self.opaque(
                device,
                StoreKind::Disk,
                None,
                format!("the stack is deeper than {DEPTH_MAX} layers"),
            );
        }
        if sysfs.attribute(device, "partition")?.is_some() {
            self.partition(device, depth)
        } else if sysfs.has(device, "dm") {
            self.mapped_device(device, depth)
        } else if sysfs.name(device).starts_with("loop") {
            self.loop_device(device, depth)
        } else if sysfs.has(device, "md") {
            let reason = format!(
                "{} is a software RAID array (md), whose layout is not followed; its bytes are read through the host (mirrors and stripes \
                 of LVM are followed)",
                sysfs.name(device)
            );
            self.opaque(device, StoreKind::Disk, None, reason)
        } else if sysfs.has(device, "bcache") {
            let reason = format!(
                "{} is a bcache device: bytes may be on its cache only, and move on their own",
                sysfs.name(device)
            );
            self.opaque(device, StoreKind::Disk, None, reason)
        } else {
            match disk_identity::of_disk(sysfs, self.ask_disk, device)? {
                Ok(identity) => self.disk(device, identity),
                Err(reason) => self.opaque(device, StoreKind::Disk, None, reason),
            }
        }
    }

    fn disk(&mut self, device: DeviceNumber, identity: Identity) -> io::Result<StoreId> {
        let names = disk_identity::ATTRIBUTES.into_iter().chain(["size", "diskseq"]);
        self.witness
            .remember(Fact::attributes(self.sysfs, device, names)?);
        let node = self.sysfs.node(device).display().to_string();
        if let Some(other) = self.graph.find(StoreKind::Disk, &identity)
            && other.label != node
        {
            // Two paths to one disk, or two disks under one name: a proxy would read one for the other.
            let reason = format!(
                "{node} has the same identity as {} ({identity}), so a proxy could not tell them apart; if they are paths to one disk, \
                 use it through one of them",
                other.label
            );
            return self.opaque(device, StoreKind::Disk, None, reason);
        }
        self.add(device, StoreKind::Disk, identity, Below::Disk)
    }

    /// The view of the device-mapper for this walk. Events count from before the first table is read.
    pub(super) fn mapper(&mut self) -> io::Result<Arc<dyn DeviceMapper>> {
        if let Some(mapper) = &self.mapper {
            return Ok(mapper.clone());
        }
        let mapper = (self.open_mapper)()?;
        self.witness.remember(Fact::NoMapperEvents {
            mapper: mapper.clone(),
        });
        Ok(self.mapper.insert(mapper).clone())
    }

    fn one_segment(&self, size: u64, store: StoreId, offset: u64) -> Below {
        let whole = ByteRange::new(0, size);
        let below = Place { store, offset };
        self.segments(whole.map(|range| Segment { range, below }).into_iter().collect())
    }

    /// Segments that lie within the stores below; else the layers contradict each other, and nothing is believed.
    fn segments(&self, segments: Vec<Segment>) -> Below {
        segments_within(self.graph, segments)
    }

    fn opaque(
        &mut self,
        device: DeviceNumber,
        kind: StoreKind,
        identity: Option<Identity>,
        reason: String,
    ) -> io::Result<StoreId> {
        let identity = match identity {
            Some(identity) => identity,
            None => by_number("dev", device)?,
        };
        self.add(device, kind, identity, Below::Opaque(reason))
    }

    fn add(
        &mut self,
        device: DeviceNumber,
        kind: StoreKind,
        identity: Identity,
        below: Below,
    ) -> io::Result<StoreId> {
        Ok(self.graph.add(Store {
            kind,
            identity,
            label: self.sysfs.node(device).display().to_string(),
            size: self.sysfs.size(device)?,
            block_size: self.sysfs.logical_block_size(device)?,
            below,
        }))
    }
}

/// Segments as what lies below a store, refused where one reaches past the end of the store that it names.
pub(crate) fn segments_within(graph: &StoreGraph, segments: Vec<Segment>) -> Below {
    let outside = segments.iter().find(|s| {
        let end = s.below.offset.checked_add(s.range.len());
        end.is_none_or(|end| end > graph.store(s.below.store).size)
    });
    match outside {
        Some(segment) => Below::Opaque(format!(
            "it reaches past the end of {}, on which it lies",
            graph.store(segment.below.store).label
        )),
        None => Below::Segments(segments),
    }
}

fn by_number(kind: &str, device: DeviceNumber) -> io::Result<Identity> {
    Identity::new(kind, &device.to_string()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
