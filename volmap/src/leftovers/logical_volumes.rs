//! What agents leave behind of LVM: snapshots, and the metadata snapshots of thin pools. Neither needs a record in the state directory:
//! LVM's metadata, and a file for each pool, tell of them, after a reboot, too.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::Finding;
use crate::frozen::left_snapshot::LeftSnapshot;
use crate::frozen::lvm_thin::{LeftMetadataSnapshot, PoolFiles};
use crate::frozen::new_snapshot::RUN_DIRECTORY;
use crate::sys::device_mapper::Control;

/// Something of LVM's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LvmLeftover(Kind);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    Snapshot(LeftSnapshot),
    MetadataSnapshot(LeftMetadataSnapshot),
}

impl LvmLeftover {
    /// What agents made of LVM on this machine, the living ones, too; [`LvmLeftover::find`] tells which is left over.
    ///
    /// # Errors
    /// `PermissionDenied`: not root. What LVM and the device-mapper say.
    pub fn all() -> io::Result<Vec<Self>> {
        let control = match Control::open() {
            // No device-mapper: no logical volume either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => Arc::new(other?),
        };
        let snapshots = LeftSnapshot::all().map_err(io::Error::other)?;
        let metadata_snapshots = LeftMetadataSnapshot::all(&PoolFiles::of_this_machine(), &control)?;
        let snapshots = snapshots.into_iter().map(Kind::Snapshot);
        let metadata_snapshots = metadata_snapshots.into_iter().map(Kind::MetadataSnapshot);
        Ok(snapshots.chain(metadata_snapshots).map(Self).collect())
    }

    /// What is there of it.
    ///
    /// # Errors
    /// Nobody can tell.
    pub fn find(&self) -> io::Result<Finding> {
        match &self.0 {
            Kind::Snapshot(left) => left.find(Path::new(RUN_DIRECTORY)),
            Kind::MetadataSnapshot(left) => {
                left.find(&PoolFiles::of_this_machine(), &Arc::new(Control::open()?))
            }
        }
    }

    /// Takes it away, if it is [`Finding::There`] now.
    ///
    /// # Errors
    /// `ResourceBusy`: it is in use, or unclear. What LVM or the pool says.
    pub fn remove(&self) -> io::Result<()> {
        match &self.0 {
            Kind::Snapshot(left) => left.remove(Path::new(RUN_DIRECTORY)),
            Kind::MetadataSnapshot(left) => {
                left.remove(&PoolFiles::of_this_machine(), &Arc::new(Control::open()?))
            }
        }
    }

    /// The frozen image that it belongs to, where that is known.
    pub fn frozen(&self) -> Option<Uuid> {
        match &self.0 {
            Kind::Snapshot(left) => Some(left.frozen),
            Kind::MetadataSnapshot(_) => None,
        }
    }

    /// What kind of thing it is, in a word.
    pub fn kind(&self) -> &'static str {
        match &self.0 {
            Kind::Snapshot(_) => "snapshot",
            Kind::MetadataSnapshot(_) => "metadata-snapshot",
        }
    }

    /// What LVM, or `dmsetup`, calls it or its pool.
    pub fn name(&self) -> String {
        match &self.0 {
            Kind::Snapshot(left) => left.name.to_string(),
            Kind::MetadataSnapshot(left) => left.pool().to_owned(),
        }
    }
}

impl fmt::Display for LvmLeftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Snapshot(left) => write!(f, "the snapshot {}", left.name),
            Kind::MetadataSnapshot(left) => write!(f, "the metadata snapshot of thin pool {}", left.pool()),
        }
    }
}
