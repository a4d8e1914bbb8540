//! What a file on btrfs stands on: chunks, and the devices that they lie on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use nix::libc;
use uuid::Uuid;

use super::chunk::{Chunk, Profile, Stripe};
use super::trace::{Member, Trace};
use crate::layers::sysfs::Sysfs;
use crate::range::ByteRange;
use crate::storage::{ALIGNMENT, AlignedBuffer};
use crate::store::{Place, Reach, StoreGraph, StoreId, Stripes};
use crate::sys::DeviceNumber;
use crate::sys::btrfs;

/// Features that change nothing about where bytes lie: mixed backreferences, default subvolume, mixed groups, LZO, zstd, big metadata,
/// extended references, parity, skinny metadata, no holes, metadata UUID, three and four mirrors, simple quota.
const UNDERSTOOD: u64 = 0b1_0000_1111_1111_1111;

/// Where the superblock of a device lies, and what is looked at there.
const SUPERBLOCK: u64 = 64 << 10;
const MAGIC: (usize, &[u8]) = (64, b"_BHRfS_M");
const FILE_SYSTEM_UUID: usize = 32;
const DEVICE_NUMBER: usize = 201;
const DEVICE_UUID: usize = 267;

/// Why a file on btrfs is not followed.
#[derive(Debug, thiserror::Error)]
pub(in crate::layers) enum GroundRefusal {
    #[error("the trees of its btrfs cannot be read: this needs root (CAP_SYS_ADMIN)")]
    NotAllowed,
    #[error("its btrfs has features that are not understood ({0:#x}), and may lie elsewhere")]
    Features(u64),
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Profile(Profile),
    #[error(
        "no device of its btrfs that has its bytes can be relied on: one is missing, or errors were counted (btrfs device stats); \
         after a scrub without errors, btrfs device stats --reset makes it count again"
    )]
    Unsound,
    #[error("its btrfs could not be looked at: {0}")]
    Io(io::Error),
}

impl From<io::Error> for GroundRefusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NotAllowed,
            _ => Self::Io(error),
        }
    }
}

/// A trace of a file system that is understood, and that moves nothing as it begins.
fn trace(file: &File, sysfs: &Sysfs, uuid: Uuid) -> Result<Trace, GroundRefusal> {
    let strange = btrfs::incompatible_features(file)? & !UNDERSTOOD;
    if strange != 0 {
        return Err(GroundRefusal::Features(strange));
    }
    let trace = Trace::begin(file, sysfs, uuid)?;
    // What began before cannot be told from the trees; what begins later can.
    trace.check_idle().map_err(GroundRefusal::Busy)?;
    Ok(trace)
}

/// Notices what btrfs moves of a file: for whoever compares places within the file system, and does not care where it lies itself.
#[derive(Debug)]
pub(crate) struct Relocations(Trace);

impl Relocations {
    /// Commits the file system. What happens from here on is noticed.
    ///
    /// # Errors
    /// Why nothing could be noticed.
    pub(crate) fn watch(file: &File) -> Result<Self, String> {
        let found = btrfs::file_system(file).map_err(|error| error.to_string())?;
        let trace = trace(file, &Sysfs::at("/sys"), found.uuid);
        trace.map(Self).map_err(|why| why.to_string())
    }

    /// Whether nothing was moved since.
    ///
    /// # Errors
    /// What was moved, or may have been.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.0.check()
    }
}

/// The ground of one file, as of a moment.
#[derive(Debug)]
pub(in crate::layers) struct Ground {
    uuid: Uuid,
    trace: Trace,
    /// Devices whose bytes may be taken for those of the file system.
    sound: BTreeMap<u64, DeviceNumber>,
}

impl Ground {
    /// Commits the file system, and looks at it. Map the file after this.
    pub(in crate::layers) fn of(file: &File, sysfs: &Sysfs) -> Result<Self, GroundRefusal> {
        let uuid = btrfs::file_system(file)?.uuid;
        let trace = trace(file, sysfs, uuid)?;
        let known = sysfs.btrfs_devices(uuid)?;
        let mut sound = BTreeMap::new();
        for member in trace.members() {
            let is_sound = known.contains(&member.node)
                && is_sound(file, uuid, member).unwrap_or_else(|error| {
                    tracing::warn!(device = %member.info.path.display(), %error, "a device of a btrfs cannot be looked at");
                    false
                });
            if is_sound {
                sound.insert(member.info.number, member.node);
            }
        }
        Ok(Self { uuid, trace, sound })
    }

    pub(in crate::layers) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Whether the witness notices everything that could be done to the file by itself.
    pub(in crate::layers) fn is_read_only(&self) -> bool {
        self.trace.is_read_only()
    }

    /// Where its addresses end.
    pub(in crate::layers) fn end(&self) -> u64 {
        self.trace.chunks().last().map_or(0, |chunk| chunk.range.end())
    }

    /// The devices to be resolved.
    pub(in crate::layers) fn devices(&self) -> impl Iterator<Item = (u64, DeviceNumber)> {
        self.sound.iter().map(|(&number, &node)| (number, node))
    }

    /// The address space of the file system over the stores of its devices, and why something of it is left out, if so: what is not
    /// understood, or on no sound device.
    pub(in crate::layers) fn pieces(
        &self,
        graph: &StoreGraph,
        stores: &BTreeMap<u64, StoreId>,
    ) -> (Vec<Stripes>, Option<GroundRefusal>) {
        let reach = Reach::of(graph);
        let mut left_out = None;
        let mut pieces = Vec::new();
        for chunk in self.trace.chunks() {
            let piece = match columns(chunk, graph, &reach, stores) {
                Ok(columns) => {
                    columns.and_then(|columns| Stripes::new(chunk.range, chunk.stripe_len, columns))
                }
                Err(profile) => {
                    left_out = Some(GroundRefusal::Profile(profile));
                    continue;
                }
            };
            match piece {
                Some(piece) => pieces.push(piece),
                None => left_out = left_out.or(Some(GroundRefusal::Unsound)),
            }
        }
        (pieces, left_out)
    }

    /// The witness of all this, from the moment it was looked at.
    pub(in crate::layers) fn into_trace(self) -> Trace {
        self.trace
    }
}

/// For each column the first of its mirrors on a disk that a proxy can read, or the first at all; `None` where none is there.
fn columns(
    chunk: &Chunk,
    graph: &StoreGraph,
    reach: &Reach,
    stores: &BTreeMap<u64, StoreId>,
) -> Result<Option<Vec<Place>>, Profile> {
    let columns = chunk.columns()?;
    let len = chunk.range.len() / (columns.len() as u64).max(1);
    let place = |stripe: &Stripe| {
        let place = Place {
            store: *stores.get(&stripe.device)?,
            offset: stripe.offset,
        };
        let within = ByteRange::new(place.offset, len)?.end() <= graph.store(place.store).size;
        within.then_some(place)
    };
    let best = |mirrors: &[Stripe]| {
        let places: Vec<Place> = mirrors.iter().filter_map(place).collect();
        let direct = places.iter().find(|&&place| reach.at(place, len) == (true, len));
        direct.or(places.first()).copied()
    };
    Ok(columns.into_iter().map(best).collect())
}

/// Whether a device is the one that it is taken for, and took every write. A mirror that missed one holds what was there before; btrfs
/// itself would notice by its checksums, a direct read does not.
fn is_sound(file: &File, uuid: Uuid, member: &Member) -> io::Result<bool> {
    let Member { info, node } = member;
    if btrfs::device_errors(file, info.number)? > 0 {
        tracing::warn!(device = %info.path.display(), "btrfs counted errors on it, so it is not read directly (btrfs device stats)");
        return Ok(false);
    }
    let device = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&info.path)?;
    if DeviceNumber::from_stat(device.metadata()?.rdev()) != *node {
        return Ok(false);
    }
    let mut superblock = AlignedBuffer::zeroed(ALIGNMENT);
    device.read_exact_at(&mut superblock, SUPERBLOCK)?;
    Ok(is_of(&superblock, uuid, info.number, info.uuid))
}

fn is_of(superblock: &[u8], file_system: Uuid, number: u64, device: Uuid) -> bool {
    let holds = |at: usize, bytes: &[u8]| superblock.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    holds(MAGIC.0, MAGIC.1)
        && holds(FILE_SYSTEM_UUID, file_system.as_bytes())
        && holds(DEVICE_NUMBER, &number.to_le_bytes())
        && holds(DEVICE_UUID, device.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::chunk::tests::item;
    use super::*;
    use crate::identity::Identity;
    use crate::store::{Below, Store, StoreKind};

    const RAID1: u64 = 1 | 1 << 4;
    const RAID10: u64 = 1 | 1 << 6;

    /// Two disks (1, 2), and one that no proxy sees (3), of 1 MiB each; number 4 is missing.
    fn devices() -> (StoreGraph, BTreeMap<u64, StoreId>) {
        let mut graph = StoreGraph::new();
        let mut stores = BTreeMap::new();
        for number in 1..4_u64 {
            let below = if number == 3 {
                Below::Opaque("it is".into())
            } else {
                Below::Disk
            };
            let store = Store {
                kind: StoreKind::Disk,
                identity: Identity::new("id", &number.to_string()).unwrap(),
                label: String::new(),
                size: 1 << 20,
                block_size: None,
                below,
            };
            stores.insert(number, graph.add(store));
        }
        (graph, stores)
    }

    fn chosen(kind: u64, mirrors: u16, stripes: &[(u64, u64)]) -> Option<Vec<(usize, u64)>> {
        let (graph, stores) = devices();
        let chunk = Chunk::parse(1 << 30, &item(512 << 10, kind, mirrors, stripes)).unwrap();
        let columns = columns(&chunk, &graph, &Reach::of(&graph), &stores).unwrap()?;
        let place = |place: &Place| (place.store.index(), place.offset);
        Some(columns.iter().map(place).collect())
    }

    #[test]
    fn of_mirrors_one_that_can_be_read_is_taken() {
        assert_eq!(chosen(RAID1, 1, &[(1, 10), (2, 20)]), Some(vec![(0, 10)]));
        assert_eq!(chosen(RAID1, 1, &[(3, 10), (2, 20)]), Some(vec![(1, 20)]));
        assert_eq!(chosen(RAID1, 1, &[(4, 10), (2, 20)]), Some(vec![(1, 20)]));
        assert_eq!(chosen(RAID1, 1, &[(3, 10), (4, 20)]), Some(vec![(2, 10)]));
        assert_eq!(chosen(RAID1, 1, &[(4, 10)]), None);
        let ten = [(3, 10), (1, 20), (4, 30), (2, 40)];
        assert_eq!(chosen(RAID10, 2, &ten), Some(vec![(0, 20), (1, 40)]));
        let half = [(3, 10), (1, 20), (4, 30), (4, 40)];
        assert_eq!(chosen(RAID10, 2, &half), None, "a column without a device");
    }

    #[test]
    fn a_stripe_past_the_end_of_its_device_is_not_taken() {
        assert_eq!(chosen(1, 1, &[(1, 512 << 10)]), Some(vec![(0, 512 << 10)]));
        assert_eq!(chosen(1, 1, &[(1, (512 << 10) + 1)]), None);
        assert_eq!(chosen(1, 1, &[(1, u64::MAX)]), None);
    }

    #[test]
    fn a_superblock_is_of_one_device_of_one_file_system() {
        let (system, device) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut block = vec![0; ALIGNMENT];
        block[32..48].copy_from_slice(system.as_bytes());
        block[64..72].copy_from_slice(b"_BHRfS_M");
        block[201..209].copy_from_slice(&7_u64.to_le_bytes());
        block[267..283].copy_from_slice(device.as_bytes());
        assert!(is_of(&block, system, 7, device));
        assert!(!is_of(&block, device, 7, device));
        assert!(!is_of(&block, system, 8, device));
        assert!(!is_of(&block, system, 7, system));
        block[64] = 0;
        assert!(!is_of(&block, system, 7, device));
        assert!(!is_of(&block[..100], system, 7, device));
    }
}
