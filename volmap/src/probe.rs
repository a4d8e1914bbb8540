//! What could be done with a volume: which providers fit it, and where it lies now. Nothing is frozen, nothing is changed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::unistd::{AccessFlags, access};

use crate::freeze::{FreezeOptions, open};
use crate::frozen::new_snapshot::NO_LOGICAL_VOLUME;
use crate::frozen::{
    Attestation, FreezeError, Stability, Strength, fixed, lvm_snapshot, lvm_thin, new_snapshot, quiesce,
    reflink, still_file,
};
use crate::layers::{Layers, Mapping, VolumeKind};
use crate::lvm::{LogicalVolume, Lvm};
use crate::map::{Content, ContentMap, Extent};
use crate::range::ByteRange;
use crate::store::{Place, Reach, StoreGraph, StoreId};
use crate::sys::{DeviceNumber, block_device, clone, inode_flags};

/// `CAP_LINUX_IMMUTABLE` of capabilities(7).
const CAP_LINUX_IMMUTABLE: u32 = 9;

/// What is said of block devices to whoever wants them frozen as files.
const FOR_FILES: &str = "it is a block device, and this is for files: lvm-snapshot and lvm-thin freeze logical volumes, an --origin has its own copy-before-write";

/// What a provider would make of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fit {
    /// It fits.
    Fits {
        /// What the bytes would be good for.
        strength: Strength,
        /// How stable the mapping would be.
        stability: Stability,
        /// Who would vouch.
        attestation: Attestation,
        /// Why there would be no direct reads, or what else an operator should know.
        remark: Option<String>,
    },
    /// It does not, and why.
    Unfit(String),
}

/// A provider and how it fits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProviderFit {
    /// `reflink`, `quiesce`, `lvm-snapshot`, `lvm-thin`, `cow`, `static`.
    pub provider: &'static str,
    /// How it fits.
    pub fit: Fit,
}

/// A stretch of a volume with its whole chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MappedExtent {
    /// Bytes of the volume.
    pub range: ByteRange,
    /// What they hold.
    pub content: Content,
    /// For data, its place in every store, uppermost first; the last is on a disk unless `opaque` is set.
    pub chain: Vec<Place>,
    /// Why the chain ends above a disk.
    pub opaque: Option<String>,
}

/// A volume as it lies now. Nobody holds it still: for people to look at, not to read by.
#[derive(Debug)]
pub struct VolumeMap {
    /// What the volume is.
    pub kind: VolumeKind,
    /// Size in bytes.
    pub size: u64,
    /// All stores below it.
    pub graph: StoreGraph,
    /// The uppermost one.
    pub top: StoreId,
    /// What it holds.
    pub content: ContentMap,
}

impl VolumeMap {
    /// All of the volume, in order. Computed one by one: a striped volume of terabytes has tens of millions of them.
    pub fn extents(&self) -> impl Iterator<Item = MappedExtent> {
        let reach = Reach::of(&self.graph);
        let mut extents = self.content.extents();
        let mut rest: Option<Extent> = None;
        std::iter::from_fn(move || {
            let extent = rest.take().or_else(|| extents.next())?;
            let mapped = self.first_piece(extent, &reach);
            rest = ByteRange::from_bounds(mapped.range.end(), extent.range.end())
                .map(|range| Extent { range, ..extent });
            Some(mapped)
        })
    }

    /// The chain of the first bytes of an extent that lie in one piece.
    fn first_piece(&self, extent: Extent, reach: &Reach) -> MappedExtent {
        let mut mapped = MappedExtent {
            range: extent.range,
            content: extent.content,
            chain: Vec::new(),
            opaque: None,
        };
        if extent.content == Content::Data {
            let place = Place {
                store: self.top,
                offset: extent.range.start(),
            };
            let (direct, len) = reach.at(place, extent.range.len());
            let resolved = self.graph.resolve(place, len);
            mapped.range = ByteRange::new(extent.range.start(), resolved.len).unwrap_or(extent.range);
            mapped.chain = resolved.chain;
            let half = || (!direct).then(|| "another column of its stripes reaches no disk".to_owned());
            mapped.opaque = resolved.opaque.or_else(half);
        }
        mapped
    }
}

/// The whole chain of every extent of a volume.
///
/// # Errors
/// [`FreezeError::Open`], [`FreezeError::HeldForWriting`] or [`FreezeError::Map`].
pub fn map(path: &Path, layers: &Layers) -> Result<VolumeMap, FreezeError> {
    let file = open(path)?;
    let mut graph = StoreGraph::new();
    let mapping = mapped(&mut graph, &file, path, layers)?;
    Ok(VolumeMap {
        kind: mapping.kind,
        size: mapping.size,
        graph,
        top: mapping.top,
        content: mapping.content,
    })
}

/// How every provider fits a volume, in the order in which they are preferred for it.
///
/// # Errors
/// [`FreezeError::Open`], [`FreezeError::HeldForWriting`] or [`FreezeError::Map`].
pub fn probe(path: &Path, options: &FreezeOptions, layers: &Layers) -> Result<Vec<ProviderFit>, FreezeError> {
    let file = open(path)?;
    let mut graph = StoreGraph::new();
    let mapping = mapped(&mut graph, &file, path, layers)?;
    let kind = mapping.kind;
    let mut rewritten = StoreGraph::new();
    layers
        .map(&mut rewritten, &file, path)
        .map_err(|source| FreezeError::Map {
            path: path.to_owned(),
            source,
        })?;
    let look = Look {
        path,
        file: &file,
        kind,
        notices_moves: mapping.notices_moves,
        options,
        opaque: opaque_reason(&graph),
        opaque_if_written: opaque_reason(&rewritten),
        alone: alone(path, kind, options.assume_exclusive).map_err(|e| e.to_string()),
    };
    Ok(vec![
        provider(reflink::METHOD, look.reflink()),
        provider(quiesce::METHOD, look.quiesce()),
        provider(lvm_snapshot::METHOD, look.lvm_snapshot()),
        provider(lvm_thin::METHOD, look.lvm_thin()),
        provider("cow", look.cow()),
        provider(fixed::METHOD, look.fixed()),
    ])
}

fn provider(provider: &'static str, fit: Fit) -> ProviderFit {
    ProviderFit { provider, fit }
}

fn mapped(graph: &mut StoreGraph, file: &File, path: &Path, layers: &Layers) -> Result<Mapping, FreezeError> {
    layers
        .map_still(graph, file, path)
        .map_err(|source| FreezeError::Map {
            path: path.to_owned(),
            source,
        })
}

/// Why nothing of a volume lies on a disk; the first reason from above is what has to be mended first.
fn opaque_reason(graph: &StoreGraph) -> Option<String> {
    let reason = || {
        graph.stores().iter().rev().find_map(|store| match &store.below {
            crate::store::Below::Opaque(reason) => Some(reason.clone()),
            _ => None,
        })
    };
    if graph.reaches_disk() { None } else { reason() }
}

/// Who would vouch that nobody changes the volume while it is held as it is.
fn alone(path: &Path, kind: VolumeKind, assume_exclusive: bool) -> Result<Attestation, FreezeError> {
    match kind {
        VolumeKind::BlockDevice => fixed::open_alone(path).map(|_| Attestation::Unattested),
        VolumeKind::File | VolumeKind::DeclaredDisk => {
            Ok(still_file::hold(open(path)?, path, assume_exclusive)?.attestation())
        }
    }
}

/// What is known of the volume.
struct Look<'a> {
    path: &'a Path,
    file: &'a File,
    kind: VolumeKind,
    notices_moves: bool,
    options: &'a FreezeOptions,
    opaque: Option<String>,
    opaque_if_written: Option<String>,
    alone: Result<Attestation, String>,
}

impl Look<'_> {
    fn fits(
        &self,
        strength: Strength,
        stability: Stability,
        attestation: Attestation,
        no_pin: Option<&str>,
    ) -> Fit {
        let remark = self.opaque.clone().or_else(|| no_pin.map(str::to_owned));
        Fit::Fits {
            strength,
            stability: if remark.is_some() {
                Stability::Opaque
            } else {
                stability
            },
            attestation,
            remark,
        }
    }

    fn reflink(&self) -> Fit {
        if self.kind == VolumeKind::BlockDevice {
            return Fit::Unfit(FOR_FILES.to_owned());
        }
        let beside = reflink::parent(self.path);
        let clone_dir = self.options.clone_dir.as_deref().unwrap_or(&beside);
        match can_clone(self.file, clone_dir) {
            Ok(()) => self.fits(
                reflink::STRENGTH,
                Stability::Pinned,
                Attestation::Witnessed,
                no_immutable_flag(),
            ),
            Err(error) => Fit::Unfit(match error.kind() {
                io::ErrorKind::CrossesDevices => {
                    format!(
                        "{} is on another file system: --clone-dir names a directory on that of the volume",
                        clone_dir.display()
                    )
                }
                io::ErrorKind::Unsupported => {
                    "its file system has no reflinks (XFS has them when made with mkfs.xfs -m reflink=1)"
                        .to_owned()
                }
                _ => format!(
                    "clones cannot be made in {}: {error} (--clone-dir names another directory of the same file system)",
                    clone_dir.display()
                ),
            }),
        }
    }

    fn quiesce(&self) -> Fit {
        if self.kind == VolumeKind::BlockDevice {
            return Fit::Unfit(FOR_FILES.to_owned());
        }
        match &self.alone {
            Err(why) => Fit::Unfit(why.clone()),
            Ok(attestation) => {
                let no_pin = match self.kind {
                    VolumeKind::DeclaredDisk => None,
                    _ if self.notices_moves => None,
                    _ => no_immutable_flag(),
                };
                self.fits(quiesce::STRENGTH, Stability::Pinned, *attestation, no_pin)
            }
        }
    }

    fn lvm_snapshot(&self) -> Fit {
        match self.logical_volume() {
            Err(why) => Fit::Unfit(why),
            Ok(volume) => match lvm_snapshot::fits(&volume) {
                Err(why) => Fit::Unfit(why.to_owned()),
                Ok(()) => match lvm_snapshot::room(self.path, self.options.snapshot_size, &volume) {
                    Err(why) => Fit::Unfit(why.to_string()),
                    Ok(_) => self.fits(
                        self.strength_by_lvm(),
                        Stability::Moves,
                        Attestation::Witnessed,
                        None,
                    ),
                },
            },
        }
    }

    fn lvm_thin(&self) -> Fit {
        match self.logical_volume() {
            Err(why) => Fit::Unfit(why),
            Ok(volume) => match lvm_thin::fits(&volume) {
                Err(why) => Fit::Unfit(why.to_owned()),
                Ok(()) => match lvm_thin::room::check(&volume) {
                    Err(why) => Fit::Unfit(why),
                    Ok(remark) => {
                        let fit = self.fits(
                            self.strength_by_lvm(),
                            Stability::Pinned,
                            Attestation::Witnessed,
                            None,
                        );
                        remarked(fit, remark)
                    }
                },
            },
        }
    }

    /// The logical volume that this is, or why it is none.
    fn logical_volume(&self) -> Result<LogicalVolume, String> {
        if self.kind != VolumeKind::BlockDevice {
            return Err("it is a file, and snapshots of this kind are of logical volumes: reflink and quiesce are for files".to_owned());
        }
        let metadata = self.file.metadata().map_err(|e| e.to_string())?;
        let found = Lvm::behind(DeviceNumber::from_stat(metadata.rdev())).map_err(|e| e.to_string())?;
        let (_, volume) = found.ok_or(NO_LOGICAL_VOLUME)?;
        Ok(volume)
    }

    /// What a snapshot of LVM's would be good for.
    fn strength_by_lvm(&self) -> Strength {
        let metadata = self.file.metadata();
        metadata.map_or(Strength::CrashConsistent, |metadata| {
            new_snapshot::strength(DeviceNumber::from_stat(metadata.rdev()))
        })
    }

    fn cow(&self) -> Fit {
        if let Err(error) = access(self.path, AccessFlags::W_OK) {
            return Fit::Unfit(format!(
                "it cannot be written to ({error}): run as its owner; what nobody can write to may be frozen already (--freeze static)"
            ));
        }
        if let Err(why) = &self.alone {
            return Fit::Unfit(why.clone());
        }
        let attestation = match self.kind {
            VolumeKind::File => Attestation::Witnessed,
            VolumeKind::BlockDevice | VolumeKind::DeclaredDisk => Attestation::Unattested,
        };
        let why = self.opaque_if_written.as_deref();
        self.fits(Strength::CrashConsistent, Stability::Moves, attestation, why)
    }

    fn fixed(&self) -> Fit {
        let attestation = match &self.alone {
            Ok(attestation) => *attestation,
            Err(why) => return Fit::Unfit(why.clone()),
        };
        match self.kind {
            VolumeKind::BlockDevice => {
                let read_only = block_device::is_read_only(self.file).unwrap_or(false);
                if read_only || self.options.assume_exclusive {
                    self.fits(fixed::STRENGTH, Stability::Pinned, attestation, None)
                } else {
                    let why = "nothing would notice a write to it: make it read-only (blockdev --setro) or say \
                               --assume-exclusive";
                    Fit::Unfit(why.to_owned())
                }
            }
            VolumeKind::DeclaredDisk => self.fits(fixed::STRENGTH, Stability::Pinned, attestation, None),
            VolumeKind::File => {
                let immutable = inode_flags::get(self.file).is_ok_and(inode_flags::InodeFlags::is_immutable);
                let no_pin = (!immutable && !self.notices_moves)
                    .then_some("its extents may move, since it is not immutable (chattr +i)");
                self.fits(fixed::STRENGTH, Stability::Pinned, attestation, no_pin)
            }
        }
    }
}

/// A fit with something more to know.
fn remarked(mut fit: Fit, more: Option<String>) -> Fit {
    if let Fit::Fits { remark, .. } = &mut fit
        && let Some(more) = more
    {
        *remark = Some(match remark.take() {
            Some(first) => format!("{first}; {more}"),
            None => more,
        });
    }
    fit
}

/// Why a file could not be made immutable by this process.
fn no_immutable_flag() -> Option<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if set.is_some_and(|set| set >> CAP_LINUX_IMMUTABLE & 1 == 1) {
        None
    } else {
        Some("its extents may move, since it cannot be made immutable: this needs root (CAP_LINUX_IMMUTABLE)")
    }
}

/// Tries on two nameless empty files.
pub(crate) fn can_clone(volume: &File, clone_dir: &Path) -> io::Result<()> {
    if fs::metadata(clone_dir)?.dev() != volume.metadata()?.dev() {
        return Err(io::ErrorKind::CrossesDevices.into());
    }
    let nameless = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(clone_dir)
    };
    clone::clone_file(&nameless()?, &nameless()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::sys::lease;

    fn fit_of(provider: &str, fits: &[ProviderFit]) -> Fit {
        let found = fits.iter().find(|f| f.provider == provider);
        found.expect("every provider is there").fit.clone()
    }

    #[test]
    fn every_provider_has_a_verdict_and_a_writer_changes_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let path = file.into_temp_path();
        let identity = Identity::from_operator("lun0").unwrap();
        let layers = Layers::new(vec![(path.to_path_buf(), identity)]).unwrap();
        let fits = probe(&path, &FreezeOptions::default(), &layers).unwrap();
        assert_eq!(fits.len(), 6);
        assert!(matches!(
            fit_of("static", &fits),
            Fit::Fits {
                stability: Stability::Pinned,
                ..
            }
        ));
        assert!(matches!(
            fit_of("cow", &fits),
            Fit::Fits {
                stability: Stability::Moves,
                attestation: Attestation::Unattested,
                ..
            }
        ));

        let writer = File::options().write(true).open(&path).unwrap();
        let fits = probe(&path, &FreezeOptions::default(), &layers).unwrap();
        for provider in ["quiesce", "lvm-snapshot", "lvm-thin", "cow", "static"] {
            assert!(matches!(fit_of(provider, &fits), Fit::Unfit(_)), "{provider}");
        }
        drop(writer);
    }

    #[test]
    fn a_map_is_total_and_ends_on_the_declared_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len((1 << 20) + 1).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[1; 4096], 1 << 19).unwrap();
        let identity = Identity::from_operator("lun0").unwrap();
        let layers = Layers::new(vec![(file.path().into(), identity)]).unwrap();
        let map = map(file.path(), &layers).unwrap();
        let mut end = 0;
        for extent in map.extents() {
            assert_eq!(extent.range.start(), end);
            end = extent.range.end();
            let expected = match extent.content {
                Content::Data => vec![Place {
                    store: map.top,
                    offset: extent.range.start(),
                }],
                _ => Vec::new(),
            };
            assert_eq!((extent.chain, extent.opaque), (expected, None));
        }
        assert_eq!(end, map.size);
    }

    #[test]
    fn an_origin_of_another_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        lease::take_write(file.as_file()).unwrap();
        let layers = Layers::new(Vec::new()).unwrap();
        let refused = map(file.path(), &layers).map(drop);
        assert!(
            matches!(refused, Err(FreezeError::HeldForWriting { .. })),
            "{refused:?}"
        );
        assert_eq!(lease::held(file.as_file()).unwrap(), lease::Held::Write);
    }
}
