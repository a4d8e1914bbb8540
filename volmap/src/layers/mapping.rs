//! The map of one volume: what it holds, and the stores under it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block_chain::{BlockChain, OpenMapper, segments_within};
use super::btrfs::{Ground, GroundRefusal};
use super::declared::Declared;
use super::device_walk::DeviceWalk;
use super::disk_identity::AskDisk;
use super::dm_table::DeviceMapper;
use super::file_extents::{self, FileExtents, Located};
use super::file_system::FileSystem;
use super::sysfs::Sysfs;
use super::witness::{Fact, LayerWitness};
use crate::identity::Identity;
use crate::map::{Content, ContentMap};
use crate::range::ByteRange;
use crate::store::{Below, Place, Reach, Segment, Store, StoreGraph, StoreId, StoreKind};
use crate::sys::device_mapper::Control;
use crate::sys::file_system::{self, FileSystemType};
use crate::sys::{DeviceNumber, block_device, scsi};

/// Longest part of a file's name in its identity, in bytes: three times as many when encoded.
const NAME_IN_IDENTITY_MAX: usize = 60;

/// What a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeKind {
    /// A file in a file system.
    File,
    /// A block device, declared or not.
    BlockDevice,
    /// A file that an operator declared to be a disk.
    DeclaredDisk,
}

/// A volume, mapped.
#[derive(Debug)]
pub struct Mapping {
    /// Size in bytes.
    pub size: u64,
    /// The uppermost store: offsets in the volume are offsets in it.
    pub top: StoreId,
    /// What the volume holds. Data may lack a location: follow the chain from `top`.
    pub content: ContentMap,
    /// Notices changes of the layers below.
    pub witness: LayerWitness,
    /// What the volume is.
    pub kind: VolumeKind,
    /// Whether the witness notices every move of the volume's extents, so that no immutable flag is needed.
    pub notices_moves: bool,
}

/// What a map is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Its volume is written to where it lies.
    Rewritten,
    /// Nobody writes to its volume.
    Still,
}

/// What a file on btrfs stands on.
struct OnBtrfs {
    store: StoreId,
    /// Nothing can be changed in its subvolume, so the witness notices whatever is done.
    is_read_only: bool,
    /// Why parts of the file system have no location.
    left_out: Option<GroundRefusal>,
}

/// Finds the way from volumes down to disks.
pub struct Layers {
    sysfs: Sysfs,
    declared: Declared,
    open_mapper: Box<OpenMapper>,
    ask_disk: Box<AskDisk>,
}

impl Layers {
    /// On this machine, with files and block devices declared to be disks.
    ///
    /// # Errors
    /// A declared path is not there, or is neither file nor block device; one identity for two disks, or two for one.
    pub fn new(declared: Vec<(PathBuf, Identity)>) -> io::Result<Self> {
        Ok(Self {
            sysfs: Sysfs::at("/sys"),
            declared: Declared::new(declared)?,
            open_mapper: Box::new(|| Ok(Arc::new(Control::open()?) as Arc<dyn DeviceMapper>)),
            ask_disk: Box::new(|node, device, page| {
                let disk = File::open(node)?;
                if DeviceNumber::from_stat(disk.metadata()?.rdev()) != device {
                    return Err(io::Error::other(format!("{} is another device", node.display())));
                }
                scsi::vital_product_data(&disk, page)
            }),
        })
    }

    /// What an open volume is.
    ///
    /// # Errors
    /// `InvalidInput`: neither a regular file nor a block device.
    pub fn kind(&self, file: &File) -> io::Result<VolumeKind> {
        let metadata = file.metadata()?;
        if metadata.file_type().is_block_device() {
            Ok(VolumeKind::BlockDevice)
        } else if !metadata.is_file() {
            let why = "a volume is a regular file or a block device";
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        } else if self.declared_file(&metadata).is_some() {
            Ok(VolumeKind::DeclaredDisk)
        } else {
            Ok(VolumeKind::File)
        }
    }

    /// Whether the disk below a file or block device is known to rotate. Nothing is opened for it.
    pub fn rotates(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|metadata| {
            let device = match metadata.file_type().is_block_device() {
                true => metadata.rdev(),
                false => metadata.dev(),
            };
            self.sysfs.rotates(DeviceNumber::from_stat(device))
        })
    }

    /// Flushes an open volume and maps it; its stores are added to `graph`. The path serves for labels only. The volume may be written to
    /// by whoever maps it: on a file system that writes elsewhere what is overwritten, it is opaque.
    ///
    /// A map of a file that somebody else can write to or defragment is worth nothing: hold a lease before calling, and check it
    /// and the mapping's witness after.
    ///
    /// # Errors
    /// Neither a file nor a block device, or it cannot be read. What cannot be followed is opaque, and no error.
    pub fn map(&self, graph: &mut StoreGraph, file: &File, path: &Path) -> io::Result<Mapping> {
        self.map_for(Use::Rewritten, graph, file, path)
    }

    /// As [`map`](Self::map), of a volume that nobody writes to: files on btrfs are followed, too.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_still(&self, graph: &mut StoreGraph, file: &File, path: &Path) -> io::Result<Mapping> {
        self.map_for(Use::Still, graph, file, path)
    }

    fn map_for(&self, purpose: Use, graph: &mut StoreGraph, file: &File, path: &Path) -> io::Result<Mapping> {
        let mut notices_moves = false;
        let kind = self.kind(file)?;
        let size = block_device::size(file)?;
        let mut witness = LayerWitness::default();
        let (top, content) = match kind {
            VolumeKind::DeclaredDisk => self.map_declared(graph, file, path, size)?,
            VolumeKind::BlockDevice => {
                file.sync_all()?;
                let device = DeviceNumber::from_stat(file.metadata()?.rdev());
                let top = self.chain(graph, &mut witness).resolve(device)?;
                (top, ContentMap::uniform(size, Content::Data))
            }
            VolumeKind::File => {
                let before = graph.clone();
                let mut left_out = None;
                let is_btrfs = file_system::of(file)?.kind == FileSystemType::Btrfs;
                let ground = if is_btrfs && purpose == Use::Still {
                    self.btrfs(graph, &mut witness, file)?.map(|found| {
                        notices_moves = found.is_read_only;
                        left_out = found.left_out;
                        found.store
                    })
                } else {
                    self.on_one_device(graph, &mut witness, file)?
                };
                let (top, content) = map_file(graph, ground, left_out, file, path, size)?;
                let store = graph.store(top);
                if matches!(store.below, Below::Opaque(_)) {
                    // What the file does not lie on is not under it.
                    let alone = store.clone();
                    *graph = before;
                    (graph.add(alone), content)
                } else {
                    (top, content)
                }
            }
        };
        Ok(Mapping {
            size,
            top,
            content,
            witness,
            kind,
            notices_moves,
        })
    }

    /// Looks at devices, adding stores to `graph`, and gives the witness of all that was looked at.
    ///
    /// # Errors
    /// Of `look`.
    pub(crate) fn walk_devices<T>(
        &self,
        graph: &mut StoreGraph,
        look: impl FnOnce(&mut DeviceWalk<'_>) -> io::Result<T>,
    ) -> io::Result<(T, LayerWitness)> {
        let mut witness = LayerWitness::default();
        let chain = self.chain(graph, &mut witness);
        let found = look(&mut DeviceWalk { chain })?;
        Ok((found, witness))
    }

    /// Opens a block device by its number, whatever its node is called.
    ///
    /// # Errors
    /// There is no node of it, or it cannot be opened.
    pub(crate) fn open_device(&self, device: DeviceNumber, options: &OpenOptions) -> io::Result<File> {
        let node = self.sysfs.node(device);
        let file = options.open(&node)?;
        if DeviceNumber::from_stat(file.metadata()?.rdev()) == device {
            Ok(file)
        } else {
            Err(io::Error::other(format!("{} is another device", node.display())))
        }
    }

    fn declared_file(&self, metadata: &std::fs::Metadata) -> Option<&Identity> {
        self.declared
            .file(DeviceNumber::from_stat(metadata.dev()), metadata.ino())
    }

    fn chain<'a>(&'a self, graph: &'a mut StoreGraph, witness: &'a mut LayerWitness) -> BlockChain<'a> {
        BlockChain {
            sysfs: &self.sysfs,
            declared: &self.declared,
            open_mapper: self.open_mapper.as_ref(),
            ask_disk: self.ask_disk.as_ref(),
            graph,
            witness,
            mapper: None,
        }
    }

    fn map_declared(
        &self,
        graph: &mut StoreGraph,
        file: &File,
        path: &Path,
        size: u64,
    ) -> io::Result<(StoreId, ContentMap)> {
        let identity = self
            .declared_file(&file.metadata()?)
            .ok_or(io::ErrorKind::NotFound)?
            .clone();
        let content = file_extents::content_only(file, size)?;
        let top = graph.add(Store {
            kind: StoreKind::Disk,
            identity,
            label: path.display().to_string(),
            size,
            block_size: None,
            below: Below::Disk,
        });
        Ok((top, content))
    }

    /// The file system of a file, or why it is not followed.
    fn on_one_device(
        &self,
        graph: &mut StoreGraph,
        witness: &mut LayerWitness,
        file: &File,
    ) -> io::Result<Result<StoreId, String>> {
        match FileSystem::of(file, &self.sysfs) {
            Ok(found) => self.file_system(graph, witness, &found).map(Ok),
            Err(refusal) => Ok(Err(refusal.to_string())),
        }
    }

    /// The same of btrfs.
    fn btrfs(
        &self,
        graph: &mut StoreGraph,
        witness: &mut LayerWitness,
        file: &File,
    ) -> io::Result<Result<OnBtrfs, String>> {
        let ground = match Ground::of(file, &self.sysfs) {
            Ok(ground) => ground,
            Err(refusal) => return Ok(Err(refusal.to_string())),
        };
        let mut stores = BTreeMap::new();
        let mut chain = self.chain(graph, witness);
        for (number, device) in ground.devices() {
            stores.insert(number, chain.resolve(device)?);
        }
        let (pieces, left_out) = ground.pieces(graph, &stores);
        let uuid = ground.uuid();
        let size = ground.end();
        let below = Below::Striped(pieces);
        // Another file of it may have been mapped when it lay otherwise.
        let mut name = uuid.to_string();
        let identity = loop {
            let identity = Identity::new("btrfs", &name).map_err(io::Error::other)?;
            match graph.find(StoreKind::FileSystem, &identity) {
                Some(other) if (&other.below, other.size) != (&below, size) => name.push('.'),
                _ => break identity,
            }
        };
        let store = graph.add(Store {
            kind: StoreKind::FileSystem,
            identity,
            label: format!("btrfs {uuid}"),
            size,
            block_size: None,
            below,
        });
        let is_read_only = ground.is_read_only();
        witness.remember(Fact::Btrfs(Box::new(ground.into_trace())));
        Ok(Ok(OnBtrfs {
            store,
            is_read_only,
            left_out,
        }))
    }

    fn file_system(
        &self,
        graph: &mut StoreGraph,
        witness: &mut LayerWitness,
        file_system: &FileSystem,
    ) -> io::Result<StoreId> {
        let device = self.chain(graph, witness).resolve(file_system.device)?;
        let size = graph.store(device).size;
        let below = Place {
            store: device,
            offset: 0,
        };
        let whole = ByteRange::new(0, size).map(|range| Segment { range, below });
        let segments = Below::Segments(whole.into_iter().collect());
        let mut identity = file_system.identity(&self.sysfs).map_err(io::Error::other)?;
        // A file system and a copy of it have one UUID, and may both be mounted.
        if (graph.find(StoreKind::FileSystem, &identity)).is_some_and(|other| other.below != segments) {
            identity = file_system.identity_by_number().map_err(io::Error::other)?;
        }
        Ok(graph.add(Store {
            kind: StoreKind::FileSystem,
            identity,
            label: file_system.mount_point.clone(),
            size,
            block_size: None,
            below: segments,
        }))
    }
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layers")
            .field("declared", &self.declared)
            .finish_non_exhaustive()
    }
}

/// Adds the store of a file, on its file system. The layers below are remembered before the extents are read: a change in between is
/// noticed.
fn map_file(
    graph: &mut StoreGraph,
    ground: Result<StoreId, String>,
    left_out: Option<GroundRefusal>,
    file: &File,
    path: &Path,
    size: u64,
) -> io::Result<(StoreId, ContentMap)> {
    let (content, below) = match ground {
        Ok(store) => {
            let segment = |located: Located| Segment {
                range: located.range,
                below: Place {
                    store,
                    offset: located.physical,
                },
            };
            let FileExtents {
                content,
                located: segments,
            } = file_extents::located_as(file, size, segment)?;
            let below = match left_out {
                Some(refusal) if !any_reaches(graph, &segments) => Below::Opaque(refusal.to_string()),
                _ => segments_within(graph, segments),
            };
            (content, below)
        }
        Err(refusal) => (file_extents::content_only(file, size)?, Below::Opaque(refusal)),
    };
    let top = graph.add(Store {
        kind: StoreKind::File,
        identity: file_identity(file, path)?,
        label: path.display().to_string(),
        size,
        block_size: None,
        below,
    });
    Ok((top, content))
}

fn any_reaches(graph: &StoreGraph, segments: &[Segment]) -> bool {
    let reach = Reach::of(graph);
    let reaches =
        |segment: &Segment| reach.at(segment.below, segment.range.len()) != (false, segment.range.len());
    segments.iter().any(reaches)
}

/// `file:NAME.MAJOR:MINOR.INODE`: the name for people, the numbers so that two files never share an identity.
fn file_identity(file: &File, path: &Path) -> io::Result<Identity> {
    let metadata = file.metadata()?;
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let device = DeviceNumber::from_stat(metadata.dev());
    let short = &name[..name.floor_char_boundary(NAME_IN_IDENTITY_MAX)];
    Identity::new("file", &format!("{short}.{device}.{}", metadata.ino())).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_name_have_two_identities() {
        let (a, b) = (
            tempfile::NamedTempFile::new().unwrap(),
            tempfile::NamedTempFile::new().unwrap(),
        );
        let path = Path::new("/x").join("ü".repeat(127));
        let identity = |f: &tempfile::NamedTempFile| file_identity(f.as_file(), &path).unwrap();
        assert_ne!(identity(&a), identity(&b));
        assert_eq!(identity(&a), identity(&a));
    }

    #[test]
    fn a_directory_is_no_volume() {
        let layers = Layers::new(Vec::new()).unwrap();
        let error = layers.kind(&File::open("/").unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_declared_file_is_a_disk_with_its_holes_known() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[1; 4096], 512 << 10).unwrap();
        let layers = Layers::new(vec![(
            file.path().into(),
            Identity::from_operator("lun0").unwrap(),
        )])
        .unwrap();
        let mut graph = StoreGraph::new();
        let mapping = layers.map(&mut graph, file.as_file(), file.path()).unwrap();
        assert_eq!(mapping.kind, VolumeKind::DeclaredDisk);
        assert_eq!(graph.store(mapping.top).below, Below::Disk);
        assert!(!mapping.content.is_zero(ByteRange::new(512 << 10, 4096).unwrap()));
        assert!(mapping.content.is_zero(ByteRange::new(0, 256 << 10).unwrap()));
        mapping.witness.check().unwrap();
    }
}
