//! A machine: its sysfs, the tables of its device-mapper, and its disks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use crate::layers::block_chain::BlockChain;
use crate::layers::declared::Declared;
use crate::layers::dm_table::DeviceMapper;
use crate::layers::sysfs::Sysfs;
use crate::layers::witness::LayerWitness;
use crate::store::{Place, StoreGraph, StoreId};
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::{DeviceStatus, TargetLine, TargetStatus};

pub(super) fn number(text: &str) -> DeviceNumber {
    DeviceNumber::parse(text).unwrap()
}

#[derive(Debug, Default)]
struct Mapped {
    uuid: String,
    table: Vec<TargetLine>,
    status: Vec<TargetLine>,
}

#[derive(Debug, Default)]
pub(super) struct Mapper {
    devices: Mutex<BTreeMap<DeviceNumber, Mapped>>,
    pub(super) events: AtomicBool,
}

impl DeviceMapper for Mapper {
    fn device_status(&self, device: DeviceNumber) -> io::Result<DeviceStatus> {
        let devices = self.devices.lock().unwrap();
        let mapped = devices.get(&device).ok_or(io::ErrorKind::NotFound)?;
        Ok(DeviceStatus {
            name: "vg-lv".into(),
            uuid: mapped.uuid.clone(),
            event_number: 0,
        })
    }

    fn table(&self, device: DeviceNumber) -> io::Result<Vec<TargetLine>> {
        Ok(self.devices.lock().unwrap()[&device].table.clone())
    }

    fn target_status(&self, device: DeviceNumber) -> io::Result<TargetStatus> {
        Ok(TargetStatus {
            read_only: false,
            suspended: false,
            targets: self.devices.lock().unwrap()[&device].status.clone(),
        })
    }

    fn events_since_armed(&self) -> io::Result<bool> {
        Ok(self.events.load(Ordering::Relaxed))
    }
}

/// Disks sda (8:0, 1 GiB, NAA ending in a) with its partition sda1 (8:1, from sector 2048), sdb (8:16, 1 GiB, ending in b), and sdc (8:32,
/// without identity); dm-0 (253:0, 3072 sectors) and dm-1 (253:1, 1 GiB).
pub(super) struct World {
    sysfs: TempDir,
    pub(super) mapper: Option<Arc<Mapper>>,
    /// Page 83h of each SCSI disk.
    pages: Mutex<BTreeMap<DeviceNumber, Vec<u8>>>,
}

impl World {
    pub(super) fn new() -> Self {
        let world = Self {
            sysfs: tempfile::tempdir().unwrap(),
            mapper: Some(Arc::default()),
            pages: Mutex::default(),
        };
        world.add("block/sda", "8:0", 2_097_152);
        world.add("block/sda/sda1", "8:1", 4096);
        world.set("8:1", "partition", "1");
        world.set("8:1", "start", "2048");
        world.add("block/sdb", "8:16", 2_097_152);
        world.add("block/sdc", "8:32", 2_097_152);
        world.scsi("8:0", 0xa);
        world.scsi("8:16", 0xb);
        world.add("block/dm-0", "253:0", 3072);
        world.set("253:0", "dm/name", "vg-lv");
        world.add("block/dm-1", "253:1", 2_097_152);
        world.set("253:1", "dm/name", "mpatha");
        world.uuid("253:0", "LVM-abc");
        world
    }

    pub(super) fn root(&self) -> &Path {
        self.sysfs.path()
    }

    fn add(&self, path: &str, number: &str, sectors: u64) {
        let directory = self.root().join("devices").join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(self.root().join("dev/block")).unwrap();
        symlink(&directory, self.root().join("dev/block").join(number)).unwrap();
        self.set(number, "dev", number);
        self.set(number, "size", &sectors.to_string());
        let name = path.rsplit('/').next().unwrap();
        self.set(number, "uevent", &format!("DEVNAME={name}"));
    }

    /// Writes an attribute.
    pub(super) fn set(&self, device: &str, name: &str, text: &str) {
        let file = self.root().join("dev/block").join(device).join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{text}\n")).unwrap();
    }

    /// Makes a disk one that answers with an NAA that ends in `last`, as the kernel remembers it.
    pub(super) fn scsi(&self, device: &str, last: u8) {
        self.set(device, "device/scsi_level", "7");
        self.set(device, "device/wwid", &format!("naa.5000c500000000{last:02x}"));
        self.answer(device, last);
    }

    /// What a SCSI disk answers, whatever the kernel remembers.
    pub(super) fn answer(&self, device: &str, last: u8) {
        let page = [0, 0x83, 0, 12, 1, 3, 0, 8, 0x50, 0, 0xc5, 0, 0, 0, 0, last].to_vec();
        self.pages.lock().unwrap().insert(number(device), page);
    }

    /// Has a disk answer no more.
    pub(super) fn silence(&self, device: &str) {
        self.pages.lock().unwrap().remove(&number(device));
    }

    pub(super) fn table(&self, device: &str, lines: &[(u64, u64, &str, &str)]) {
        let line = |&(start, sectors, kind, parameters): &(u64, u64, &str, &str)| TargetLine {
            start,
            sectors,
            kind: kind.into(),
            parameters: parameters.into(),
        };
        self.device(device, |mapped| mapped.table = lines.iter().map(line).collect());
    }

    pub(super) fn uuid(&self, device: &str, uuid: &str) {
        self.device(device, |mapped| mapped.uuid = uuid.into());
    }

    pub(super) fn status(&self, device: &str, status: &str) {
        let line = TargetLine {
            start: 0,
            sectors: 0,
            kind: String::new(),
            parameters: status.into(),
        };
        self.device(device, |mapped| mapped.status = vec![line]);
    }

    fn device(&self, device: &str, change: impl FnOnce(&mut Mapped)) {
        let mut devices = self.mapper.as_ref().unwrap().devices.lock().unwrap();
        change(devices.entry(number(device)).or_default());
    }

    pub(super) fn resolve(&self, device: &str) -> (StoreGraph, StoreId, LayerWitness) {
        let (mut graph, mut witness) = (StoreGraph::new(), LayerWitness::default());
        let pages = self.pages.lock().unwrap().clone();
        let ask_disk = move |_: &Path, device: DeviceNumber, page: u8| {
            let page = (page == 0x83).then(|| pages.get(&device).cloned()).flatten();
            page.ok_or_else(|| io::ErrorKind::TimedOut.into())
        };
        let mapper = self.mapper.clone();
        let open_mapper = move || {
            let mapper = mapper.clone().ok_or(io::ErrorKind::NotFound)?;
            Ok(mapper as Arc<dyn DeviceMapper>)
        };
        let top = BlockChain {
            sysfs: &Sysfs::at(self.root()),
            declared: &Declared::new(Vec::new()).unwrap(),
            open_mapper: &open_mapper,
            ask_disk: &ask_disk,
            graph: &mut graph,
            witness: &mut witness,
            mapper: None,
        }
        .resolve(number(device))
        .unwrap();
        (graph, top, witness)
    }

    /// Why a device is opaque: of the store that its first byte ends in.
    pub(super) fn reason(&self, device: &str) -> String {
        let (graph, store, _) = self.resolve(device);
        let resolved = graph.resolve(Place { store, offset: 0 }, 512);
        resolved.opaque.expect("it is opaque")
    }
}

pub(super) fn disk_offset(graph: &StoreGraph, store: StoreId, offset: u64) -> Option<(String, u64, u64)> {
    let resolved = graph.resolve(Place { store, offset }, 1 << 30);
    let disk = resolved.disk()?;
    Some((
        graph.store(disk.store).identity.to_string(),
        disk.offset,
        resolved.len,
    ))
}
