//! The map of one volume: what it holds, and the stores under it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block_chain::{BlockChain, OpenMapper, segments_within};
use super::declared::Declared;
use super::device_walk::DeviceWalk;
use super::dm_table::DeviceMapper;
use super::file_extents::{self, FileExtents};
use super::file_system::FileSystem;
use super::sysfs::Sysfs;
use super::witness::LayerWitness;
use crate::identity::Identity;
use crate::map::{Content, ContentMap};
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, Store, StoreGraph, StoreId, StoreKind};
use crate::sys::device_mapper::Control;
use crate::sys::{DeviceNumber, block_device};

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
}

/// Finds the way from volumes down to disks.
pub struct Layers {
    sysfs: Sysfs,
    declared: Declared,
    open_mapper: Box<OpenMapper>,
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

    /// Flushes an open volume and maps it; its stores are added to `graph`. The path serves for labels only.
    ///
    /// A map of a file that somebody can write to or defragment is worth nothing: hold a lease before calling, and check it
    /// and the mapping's witness after.
    ///
    /// # Errors
    /// Neither a file nor a block device, or it cannot be read. What cannot be followed is opaque, and no error.
    pub fn map(&self, graph: &mut StoreGraph, file: &File, path: &Path) -> io::Result<Mapping> {
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
            VolumeKind::File => self.map_file(graph, &mut witness, file, path, size)?,
        };
        Ok(Mapping {
            size,
            top,
            content,
            witness,
            kind,
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
            below: Below::Disk,
        });
        Ok((top, content))
    }

    fn map_file(
        &self,
        graph: &mut StoreGraph,
        witness: &mut LayerWitness,
        file: &File,
        path: &Path,
        size: u64,
    ) -> io::Result<(StoreId, ContentMap)> {
        let (content, below) = match FileSystem::of(file, &self.sysfs) {
            Ok(file_system) => {
                // The layers are remembered before the extents are read: a change in between is noticed.
                let store = self.file_system(graph, witness, &file_system)?;
                let FileExtents { content, located } = file_extents::located(file, size)?;
                let segments = located.into_iter().map(|l| Segment {
                    range: l.range,
                    below: Place {
                        store,
                        offset: l.physical,
                    },
                });
                (content, segments_within(graph, segments.collect()))
            }
            Err(refusal) => (
                file_extents::content_only(file, size)?,
                Below::Opaque(refusal.to_string()),
            ),
        };
        let top = graph.add(Store {
            kind: StoreKind::File,
            identity: file_identity(file, path)?,
            label: path.display().to_string(),
            size,
            below,
        });
        Ok((top, content))
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
