//! A thin snapshot of the kernel of this machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;

use super::image::{Maps, NoSurvey, Sample, Snapshot, Survey};
use super::locate::{self, locate};
use super::metadata::{MetadataError, PoolGeometry, ThinMap};
use super::metadata_device::MetadataDevice;
use super::metadata_snapshot::MetadataSnapshot;
use super::pool::{LivePool, Pool, PoolError};
use super::pool_file::PoolFiles;
use super::target::{PoolTarget, TargetError, ThinTarget, mapped_sectors};
use super::write_counter::WriteCounter;
use crate::frozen::new_snapshot::{NewSnapshot, OpenSnapshot};
use crate::frozen::{FreeSpace, NoFreeSpace};
use crate::identity::Identity;
use crate::layers::Layers;
use crate::storage::{ALIGNMENT, AlignedBuffer, read_direct};
use crate::store::{Below, Store, StoreGraph, StoreKind};
use crate::sys::device_mapper::{Control, TargetLine};
use crate::sys::{DeviceNumber, block_device};

const SECTOR: u64 = 512;

/// See the module.
pub(super) struct KernelSnapshot {
    device: DeviceNumber,
    control: Arc<Control>,
    /// Its device-mapper UUID.
    identity: Identity,
    label: String,
    size: u64,
    /// As it was at first.
    table: Vec<TargetLine>,
    target: ThinTarget,
    pool: LivePool,
    writes: WriteCounter,
    layers: Arc<Layers>,
    pool_files: PoolFiles,
    /// The number of the thin device in its pool stays its own, too.
    file: OpenSnapshot<File>,
}

impl KernelSnapshot {
    /// Opens a new snapshot by its device.
    ///
    /// # Errors
    /// It cannot be opened, or is no thin volume. The snapshot is removed then.
    pub(super) fn open(
        device: DeviceNumber,
        new: NewSnapshot,
        layers: &Arc<Layers>,
        pool_files: PoolFiles,
    ) -> io::Result<Self> {
        let file = layers.open_device(device, &read_only())?;
        let mut first = AlignedBuffer::zeroed(ALIGNMENT);
        let writes = WriteCounter::of(device, || read_direct(&file, 0, &mut first))?;
        let control = Arc::new(Control::open()?);
        let status = control.device_status(device)?;
        let table = control.table(device)?;
        // Where it has an external origin it is frozen all the same, but not mapped: the survey says so.
        let (target, _) = ThinTarget::parse_any(&table).map_err(io::Error::other)?;
        Ok(Self {
            device,
            identity: Identity::new("dm", &status.uuid).map_err(io::Error::other)?,
            label: format!("/dev/mapper/{}", status.name),
            size: block_device::size(&file)?,
            pool: LivePool::new(Arc::clone(&control), target.pool)?,
            control,
            table,
            target,
            writes,
            layers: Arc::clone(layers),
            pool_files,
            file: OpenSnapshot::new(new, file),
        })
    }

    /// Size of the volume in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A map with nothing in it but the reason why there is none.
    pub(super) fn opaque(&self, reason: String) -> Survey {
        Survey::opaque(self.store(Below::Opaque(reason)))
    }

    fn store(&self, below: Below) -> Store {
        Store {
            kind: StoreKind::DeviceMapper,
            identity: self.identity.clone(),
            label: self.label.clone(),
            size: self.size,
            block_size: None,
            below,
        }
    }

    /// What `read` makes of the pool's metadata, as it is at one time.
    fn with_metadata<T>(
        &self,
        pool: PoolTarget,
        patience: Duration,
        read: impl FnOnce(&MetadataDevice, u64, PoolGeometry) -> Result<T, MetadataError>,
    ) -> Result<T, NoSurvey> {
        let not_now = |why: &dyn std::fmt::Display| NoSurvey::NotNow(why.to_string());
        let metadata =
            (self.layers.open_device(pool.metadata, &read_only())).and_then(MetadataDevice::new)?;
        let status = self.pool.status().map_err(|e| not_now(&e))?;
        let geometry = PoolGeometry {
            data_block_size: pool.data_block_size,
            data_blocks: status.data_blocks,
        };
        let snapshot =
            MetadataSnapshot::take(&self.pool, &self.pool_files, patience).map_err(|e| not_now(&e))?;
        let made = read(&metadata, snapshot.root(), geometry);
        // If somebody took it from under us, that explains anything.
        snapshot.stands().map_err(|e| not_now(&e))?;
        drop(snapshot);
        Ok(made?)
    }

    /// The map, from the pool's metadata.
    fn read_map(&self, pool: PoolTarget, patience: Duration) -> Result<ThinMap, NoSurvey> {
        let not_now = |why: &dyn std::fmt::Display| NoSurvey::NotNow(why.to_string());
        let map = self.with_metadata(pool, patience, |metadata, root, geometry| {
            ThinMap::read(metadata, root, self.target.device, geometry)
        })?;
        let sectors = (self.control.target_status(self.device))
            .map_err(|e| not_now(&e))
            .and_then(|status| mapped_sectors(&status.targets).map_err(|e| NoSurvey::Gone(e.to_string())))?;
        let mapped = map.mapped_blocks.checked_mul(pool.data_block_size);
        if mapped != sectors.checked_mul(SECTOR) {
            return Err(NoSurvey::Opaque(format!(
                "the metadata of its thin pool has {} blocks mapped, and the kernel {sectors} sectors",
                map.mapped_blocks
            )));
        }
        Ok(map)
    }
}

impl Snapshot for KernelSnapshot {
    fn sample(&self) -> io::Result<Sample> {
        let lost = |why: &str| Ok(Sample::Lost(why.to_owned()));
        let (status, table) = match self
            .control
            .target_status(self.device)
            .and_then(|status| Ok((status, self.control.table(self.device)?)))
        {
            Ok(told) => told,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                return lost("its device is not there any more");
            }
            Err(error) => return Err(error),
        };
        if table != self.table {
            return lost("its thin snapshot has another table");
        }
        if !status.read_only {
            return lost("its thin snapshot can be written to");
        }
        if let Err(why) = mapped_sectors(&status.targets) {
            return lost(&why.to_string());
        }
        Ok(self.writes.check().map_or_else(Sample::Lost, |()| Sample::Frozen))
    }

    fn doubt(&self) -> io::Result<Option<String>> {
        match self.pool.status() {
            Ok(status) => Ok(status.doubt().map(str::to_owned)),
            Err(PoolError::Target(why)) => Ok(Some(why.to_string())),
            Err(PoolError::DeviceMapper(error)) => Err(error),
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        read_direct(&*self.file.open()?, offset, buf)
    }

    fn survey(&self, patience: Duration) -> Result<Survey, NoSurvey> {
        let mut graph = StoreGraph::new();
        // Tables first, and the map after: what happens in between is noticed.
        let ((table, pool), witness) = self.layers.walk_devices(&mut graph, |walk| {
            let table = walk.table(self.device)?;
            let pool = match PoolTarget::parse(&walk.table(self.target.pool)?) {
                Ok(pool) => Ok((pool, walk.store(pool.data)?)),
                Err(why) => Err(why),
            };
            Ok((table, pool))
        })?;
        if table != self.table {
            return Err(NoSurvey::Gone("its thin snapshot has another table".to_owned()));
        }
        let not_understood = |why: TargetError| NoSurvey::Opaque(why.to_string());
        ThinTarget::parse(&table).map_err(not_understood)?;
        let (pool, data) = pool.map_err(not_understood)?;
        let map = self.read_map(pool, patience)?;
        let (content, below) = locate(&graph, &map, self.size, pool.data_block_size, data);
        let top = graph.add(self.store(below));
        Ok(Survey {
            graph,
            top,
            content,
            witness: Box::new(move || witness.check()),
        })
    }

    fn device(&self) -> Option<ThinTarget> {
        ThinTarget::parse(&self.table).ok()
    }

    fn maps_beside(&self, older: ThinTarget, size: u64, patience: Duration) -> Result<Maps, NoSurvey> {
        let pool = PoolTarget::parse(&self.control.table(self.target.pool)?)
            .map_err(|why| NoSurvey::Opaque(format!("its thin pool cannot be followed: {why}")))?;
        self.with_metadata(pool, patience, |metadata, root, geometry| {
            let extents = |device: u64, size: u64| {
                let map = ThinMap::read(metadata, root, device, geometry)?;
                Ok(locate::extents(&map, size, pool.data_block_size))
            };
            Ok(Maps {
                now: extents(self.target.device, self.size)?,
                then: extents(older.device, size)?,
            })
        })
    }

    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        FreeSpace::on_device(&*self.file.open()?, self.device, self.size)
    }

    fn remove(&self) {
        self.file.remove();
    }
}

/// Past the page cache, which knows nothing of what others do to the device.
fn read_only() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECT);
    options
}
