//! A snapshot of the kernel of this machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use nix::libc;

use super::exception_store::Geometry;
use super::image::{Snapshot, Survey};
use super::table::{Sample, SnapshotTable};
use crate::frozen::new_snapshot::{NewSnapshot, OpenSnapshot};
use crate::frozen::{FreeSpace, FrozenError, NoFreeSpace};
use crate::layers::Layers;
use crate::storage::{ALIGNMENT, AlignedBuffer, read_direct};
use crate::store::StoreGraph;
use crate::sys::device_mapper::{Control, TargetLine};
use crate::sys::{DeviceNumber, block_device};

/// What is held open.
struct Files {
    snapshot: File,
    store: File,
}

/// See the module.
pub(super) struct KernelSnapshot {
    device: DeviceNumber,
    control: Control,
    /// As it was at first.
    table: Vec<TargetLine>,
    parsed: SnapshotTable,
    layers: Arc<Layers>,
    files: OpenSnapshot<Files>,
}

impl KernelSnapshot {
    /// Opens a new snapshot by its device, and checks that it is what it should be.
    ///
    /// # Errors
    /// It cannot be opened, or is none that is understood. The snapshot is removed then.
    pub(super) fn open(device: DeviceNumber, new: NewSnapshot, layers: &Arc<Layers>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT);
        let snapshot = layers.open_device(device, &options)?;
        let control = Control::open()?;
        let table = control.table(device)?;
        let parsed = SnapshotTable::parse(&table).ok_or_else(|| {
            let parameters: Vec<_> = table
                .iter()
                .map(|line| format!("{} {}", line.kind, line.parameters))
                .collect();
            io::Error::other(format!(
                "the table of the snapshot is not understood: {}",
                parameters.join("; ")
            ))
        })?;
        let store = layers.open_device(parsed.store, &options)?;
        let mut header = AlignedBuffer::zeroed(ALIGNMENT);
        read_direct(&store, 0, &mut header)?;
        parsed.geometry.check_header(&header).map_err(io::Error::other)?;
        Ok(Self {
            device,
            control,
            table,
            parsed,
            layers: Arc::clone(layers),
            files: OpenSnapshot::new(new, Files { snapshot, store }),
        })
    }

    /// Of the exception store.
    pub(super) fn geometry(&self) -> Geometry {
        self.parsed.geometry
    }

    /// Size of the volume in bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        block_device::size(&self.files.open()?.snapshot)
    }
}

impl Snapshot for KernelSnapshot {
    fn sample(&self) -> io::Result<Sample> {
        match self.control.target_status(self.device) {
            Ok(status) => Ok(Sample::of(&status)),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                Ok(Sample::Lost("its device is not there any more".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    fn read_store(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        read_direct(&self.files.open()?.store, offset, buf)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        read_direct(&self.files.open()?.snapshot, offset, buf)
    }

    fn survey(&self) -> Result<Survey, FrozenError> {
        let mut graph = StoreGraph::new();
        let ((table, origin, store), witness) = self.layers.walk_devices(&mut graph, |walk| {
            let table = walk.table(self.device)?;
            Ok((
                table,
                walk.store(self.parsed.origin)?,
                walk.store(self.parsed.store)?,
            ))
        })?;
        if table != self.table {
            return Err(FrozenError::Gone("its snapshot has another table".to_owned()));
        }
        Ok(Survey {
            graph,
            origin,
            store,
            witness: Box::new(move || witness.check()),
        })
    }

    fn origin(&self) -> DeviceNumber {
        self.parsed.origin
    }

    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        let files = self.files.open()?;
        FreeSpace::on_device(&files.snapshot, self.device, block_device::size(&files.snapshot)?)
    }

    fn remove(&self) {
        self.files.remove();
    }
}
