//! From a block device down to its disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::declared::Declared;
use super::disk_identity;
use super::dm_table::{DeviceMapper, linear_targets};
use super::sysfs::{SECTOR, Sysfs};
use super::witness::{Fact, LayerWitness};
use crate::identity::Identity;
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, Store, StoreGraph, StoreId, StoreKind};
use crate::sys::{DeviceNumber, loop_device};

/// Deeper stacks are not followed. Real ones have four or five layers.
const DEPTH_MAX: usize = 16;

/// Gives a fresh view of the device-mapper, armed for events.
pub(super) type OpenMapper = dyn Fn() -> io::Result<Arc<dyn DeviceMapper>> + Send + Sync;

/// One walk from a volume down to its disks.
pub(super) struct BlockChain<'a> {
    pub(super) sysfs: &'a Sysfs,
    pub(super) declared: &'a Declared,
    pub(super) open_mapper: &'a OpenMapper,
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
        } else if let Some(why) = ["md", "bcache"].into_iter().find(|d| sysfs.has(device, d)) {
            let reason = format!(
                "{} is a {why} device, which is not understood",
                sysfs.name(device)
            );
            self.opaque(device, StoreKind::Disk, None, reason)
        } else if let Some(identity) = disk_identity::of_disk(sysfs, device)? {
            self.disk(device, identity)
        } else {
            let node = sysfs.node(device);
            let reason = format!(
                "{0} has no identity of its own; where a proxy sees the same disk, declare it: --identity {0}=NAME",
                node.display()
            );
            self.opaque(device, StoreKind::Disk, None, reason)
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

    fn partition(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
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

    fn mapped_device(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
        let kind = StoreKind::DeviceMapper;
        let mapper = match self.mapper() {
            Ok(mapper) => mapper,
            Err(error) => {
                let reason = format!(
                    "its device-mapper table cannot be read ({error}); this needs root and /dev/mapper/control"
                );
                return self.opaque(device, kind, None, reason);
            }
        };
        let (status, table) = match mapper
            .device_status(device)
            .and_then(|s| Ok((s, mapper.table(device)?)))
        {
            Ok(told) => told,
            Err(error) => {
                let reason = format!("its device-mapper table cannot be read: {error}");
                return self.opaque(device, kind, None, reason);
            }
        };
        let name = if status.uuid.is_empty() {
            &status.name
        } else {
            &status.uuid
        };
        let identity = Identity::new("dm", name).or_else(|_| by_number("dm", device))?;
        self.witness.remember(Fact::Table {
            mapper,
            device,
            status,
            table: table.clone(),
        });
        let targets = match linear_targets(&table) {
            Ok(targets) => targets,
            Err(error) => return self.opaque(device, kind, Some(identity), error.to_string()),
        };
        let mut segments = Vec::new();
        for target in targets {
            let store = self.resolve_at(target.device, depth + 1)?;
            let below = Place {
                store,
                offset: target.offset,
            };
            segments.push(Segment {
                range: target.range,
                below,
            });
        }
        let below = self.segments(segments);
        self.add(device, kind, identity, below)
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

    fn loop_device(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
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
        let name = format!("{}-{}", self.graph.store(disk).identity, status.offset);
        let identity = Identity::new("loop", &name).or_else(|_| by_number("loop", device))?;
        let below = self.one_segment(sysfs.size(device)?, disk, status.offset);
        self.add(device, kind, identity, below)
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
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::sys::device_mapper::{DeviceStatus, TargetLine};

    /// A sysfs with disk sda (8:0, has a WWID, 1 GiB), its partition sda1 (8:1, from sector 2048), disk sdb (8:16, without identity)
    /// and dm-0 (253:0).
    fn fixture(root: &Path) {
        let device = |path: &str, number: &str, attributes: &[(&str, &str)]| {
            let directory = root.join("devices").join(path);
            for (name, text) in attributes {
                let file = directory.join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
            fs::create_dir_all(root.join("dev/block")).unwrap();
            symlink(directory, root.join("dev/block").join(number)).unwrap();
        };
        let sectors = "2097152\n";
        device(
            "block/sda",
            "8:0",
            &[
                ("device/wwid", "naa.5000c5\n"),
                ("size", sectors),
                ("uevent", "DEVNAME=sda\n"),
            ],
        );
        device(
            "block/sda/sda1",
            "8:1",
            &[
                ("partition", "1\n"),
                ("start", "2048\n"),
                ("size", "4096\n"),
                ("uevent", "DEVNAME=sda1\n"),
            ],
        );
        device(
            "block/sdb",
            "8:16",
            &[("size", sectors), ("uevent", "DEVNAME=sdb\n")],
        );
        device(
            "block/dm-0",
            "253:0",
            &[
                ("dm/name", "vg-lv\n"),
                ("size", "3072\n"),
                ("uevent", "DEVNAME=dm-0\n"),
            ],
        );
    }

    #[derive(Debug)]
    struct FakeMapper {
        table: Mutex<Vec<TargetLine>>,
        events: Mutex<bool>,
    }

    impl DeviceMapper for FakeMapper {
        fn device_status(&self, _: DeviceNumber) -> io::Result<DeviceStatus> {
            Ok(DeviceStatus {
                name: "vg-lv".into(),
                uuid: "LVM-abc".into(),
                event_number: 0,
            })
        }

        fn table(&self, _: DeviceNumber) -> io::Result<Vec<TargetLine>> {
            Ok(self.table.lock().unwrap().clone())
        }

        fn events_since_armed(&self) -> io::Result<bool> {
            Ok(*self.events.lock().unwrap())
        }
    }

    fn line(start: u64, sectors: u64, kind: &str, parameters: &str) -> TargetLine {
        TargetLine {
            start,
            sectors,
            kind: kind.into(),
            parameters: parameters.into(),
        }
    }

    fn resolve(
        root: &Path,
        mapper: Option<Arc<FakeMapper>>,
        device: &str,
    ) -> (StoreGraph, StoreId, LayerWitness) {
        let (mut graph, mut witness) = (StoreGraph::new(), LayerWitness::default());
        let open_mapper = move || {
            let mapper = mapper.clone().ok_or(io::ErrorKind::NotFound)?;
            Ok(mapper as Arc<dyn DeviceMapper>)
        };
        let top = BlockChain {
            sysfs: &Sysfs::at(root),
            declared: &Declared::new(Vec::new()).unwrap(),
            open_mapper: &open_mapper,
            graph: &mut graph,
            witness: &mut witness,
            mapper: None,
        }
        .resolve(DeviceNumber::parse(device).unwrap())
        .unwrap();
        (graph, top, witness)
    }

    fn disk_offset(graph: &StoreGraph, store: StoreId, offset: u64) -> Option<(String, u64, u64)> {
        let resolved = graph.resolve(Place { store, offset }, 1 << 30);
        let disk = resolved.disk()?;
        Some((
            graph.store(disk.store).identity.to_string(),
            disk.offset,
            resolved.len,
        ))
    }

    #[test]
    fn a_partition_lies_at_its_start() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let (graph, top, witness) = resolve(root.path(), None, "8:1");
        assert_eq!(graph.store(top).identity.as_str(), "partition:naa:5000c5-1");
        assert_eq!(
            disk_offset(&graph, top, 512),
            Some(("naa:5000c5".into(), 2049 * 512, 4095 * 512))
        );
        witness.check().unwrap();
        fs::write(root.path().join("devices/block/sda/sda1/start"), "2056\n").unwrap();
        assert!(witness.check().unwrap_err().contains("start"));
        fs::write(root.path().join("devices/block/sda/sda1/start"), "2048\n").unwrap();
        assert!(witness.check().is_err(), "a lost mapping stays lost");
    }

    #[test]
    fn another_disk_in_the_place_of_the_first_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let (_, _, witness) = resolve(root.path(), None, "8:1");
        fs::write(root.path().join("devices/block/sda/device/wwid"), "naa.5000c6\n").unwrap();
        assert!(witness.check().is_err());
    }

    #[test]
    fn a_disk_without_identity_is_opaque_and_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let (graph, top, _) = resolve(root.path(), None, "8:16");
        let Below::Opaque(reason) = &graph.store(top).below else {
            panic!("not opaque")
        };
        assert!(reason.contains("--identity /dev/sdb=NAME"), "{reason}");
    }

    #[test]
    fn of_two_disks_with_one_identity_only_the_first_is_followed() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let sdb = root.path().join("devices/block/sdb/device");
        fs::create_dir(&sdb).unwrap();
        fs::write(sdb.join("wwid"), "naa.5000c5\n").unwrap();
        let mapper = Arc::new(FakeMapper {
            table: Mutex::new(vec![
                line(0, 1024, "linear", "8:0 8192"),
                line(1024, 1024, "linear", "8:16 2048"),
                line(2048, 1024, "linear", "8:1 0"),
            ]),
            events: Mutex::new(false),
        });
        let (graph, top, _) = resolve(root.path(), Some(mapper), "253:0");
        assert!(disk_offset(&graph, top, 0).is_some());
        assert_eq!(disk_offset(&graph, top, 1024 * 512), None);
        assert!(disk_offset(&graph, top, 2048 * 512).is_some());
    }

    #[test]
    fn linear_targets_are_followed_through_partitions() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let mapper = Arc::new(FakeMapper {
            table: Mutex::new(vec![
                line(0, 1024, "linear", "8:0 8192"),
                line(1024, 2048, "linear", "8:1 2048"),
            ]),
            events: Mutex::new(false),
        });
        let (graph, top, witness) = resolve(root.path(), Some(mapper.clone()), "253:0");
        assert_eq!(graph.store(top).identity.as_str(), "dm:LVM-abc");
        assert_eq!(
            disk_offset(&graph, top, 0),
            Some(("naa:5000c5".into(), 8192 * 512, 1024 * 512))
        );
        assert_eq!(
            disk_offset(&graph, top, 1024 * 512),
            Some(("naa:5000c5".into(), 4096 * 512, 2048 * 512))
        );
        witness.check().unwrap();
        mapper.table.lock().unwrap()[0].parameters = "8:0 8200".into();
        assert!(witness.check().is_err());
    }

    #[test]
    fn a_table_that_came_back_is_noticed_by_the_event_counter() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let mapper = Arc::new(FakeMapper {
            table: Mutex::new(vec![line(0, 3072, "linear", "8:0 8192")]),
            events: Mutex::new(false),
        });
        let (_, _, witness) = resolve(root.path(), Some(mapper.clone()), "253:0");
        *mapper.events.lock().unwrap() = true;
        assert!(witness.check().is_err());
    }

    #[test]
    fn what_is_not_understood_is_opaque() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let mapper = |table| {
            let events = Mutex::new(false);
            Some(Arc::new(FakeMapper {
                table: Mutex::new(table),
                events,
            }))
        };
        for (case, found) in [
            (
                "striped",
                resolve(
                    root.path(),
                    mapper(vec![line(0, 3072, "striped", "2 8 8:0 0 8:16 0")]),
                    "253:0",
                ),
            ),
            (
                "past the end of sda1",
                resolve(
                    root.path(),
                    mapper(vec![line(0, 3072, "linear", "8:1 2048")]),
                    "253:0",
                ),
            ),
            (
                "on itself",
                resolve(
                    root.path(),
                    mapper(vec![line(0, 3072, "linear", "253:0 0")]),
                    "253:0",
                ),
            ),
            ("no mapper", resolve(root.path(), None, "253:0")),
        ] {
            let (graph, top, _) = found;
            assert_eq!(disk_offset(&graph, top, 0), None, "{case}");
        }
    }
}
