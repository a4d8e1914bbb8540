//! A file that stands for a LUN, a loop device on it, and a file system on that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::libc;
use tempfile::TempDir;
use volmap::cow::{CopyAreaSpec, OnFull, Origin};
use volmap::freeze::{FreezeError, FreezeOptions, Method, freeze};
use volmap::frozen::{FrozenImage, StatusExtent};
use volmap::generation::GenerationClock;
use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::map::Content;
use volmap::range::ByteRange;
use volmap::store::Place;

const BLOCK: usize = 4096;

/// Says that a test did not run: on stdout, and in the file that `SKIP_LOG` names, where `tests/run` counts it.
fn skip(test: &str, why: &str) {
    let line = format!("SKIP: {test}: {why}\n");
    print!("{line}");
    if let Some(log) = std::env::var_os("SKIP_LOG") {
        let mut log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}

/// The rig; detached and unmounted when dropped.
pub(crate) struct Rig {
    directory: TempDir,
    pub(crate) lun: PathBuf,
    pub(crate) device: PathBuf,
    pub(crate) mount: PathBuf,
    clock: Arc<GenerationClock>,
    /// Further loop devices, detached with the rig.
    attached: Vec<PathBuf>,
}

impl Rig {
    /// A LUN of `mib` MiB with a file system made by `mkfs`; `None`, with a `SKIP:` line, where this machine cannot.
    pub(crate) fn new(test: &str, mib: u64, mkfs: &[&str]) -> Option<Self> {
        match Self::build(mib, mkfs) {
            Ok(rig) => Some(rig),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    fn build(mib: u64, mkfs: &[&str]) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("not root".to_owned());
        }
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
        let lun = directory.path().join("lun");
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).map_err(|e| e.to_string())?;
        File::create(&lun)
            .and_then(|f| f.set_len(mib << 20))
            .map_err(|e| e.to_string())?;
        let device = attach(&lun, &["--direct-io=on"]).or_else(|_| attach(&lun, &["--direct-io=off"]))?;
        let rig = Self {
            directory,
            lun,
            device,
            mount,
            clock: Arc::new(GenerationClock::start().map_err(|e| e.to_string())?),
            attached: Vec::new(),
        };
        // A proxy that was killed while it read from this loop device has left it read-only.
        run("blockdev", &["--setrw", path(&rig.device)])?;
        if let Some((program, arguments)) = mkfs.split_first() {
            let arguments: Vec<&str> = arguments.iter().copied().chain([path(&rig.device)]).collect();
            run(program, &arguments)?;
            run("mount", &[path(&rig.device), path(&rig.mount)])?;
        }
        Ok(rig)
    }

    /// Attaches another loop device to a file or device.
    pub(crate) fn attach(&mut self, below: &Path, options: &[&str]) -> PathBuf {
        let device = attach(below, options).unwrap();
        self.attached.push(device.clone());
        device
    }

    /// Detaches a loop device of [`Self::attach`] early, and once: its number may be another test's a moment later.
    pub(crate) fn detach(&mut self, device: &Path) {
        let attached = self.attached.iter().position(|other| other == device);
        self.attached.remove(attached.expect("a device of this rig"));
        run("losetup", &["-d", path(device)]).unwrap();
    }

    /// XFS with reflinks.
    pub(crate) fn xfs(test: &str) -> Option<Self> {
        Self::new(test, 320, &["mkfs.xfs", "-q", "-m", "reflink=1"])
    }

    /// ext4.
    pub(crate) fn ext4(test: &str) -> Option<Self> {
        Self::new(test, 128, &["mkfs.ext4", "-q"])
    }

    /// Layers that know the LUN.
    pub(crate) fn layers(&self) -> Layers {
        let identity = Identity::from_operator("lun0").unwrap();
        Layers::new(vec![(self.lun.clone(), identity)]).unwrap()
    }

    pub(crate) fn freeze(&self, volume: &Path, method: Method) -> Result<Arc<dyn FrozenImage>, FreezeError> {
        self.freeze_with(
            volume,
            &FreezeOptions {
                method,
                ..FreezeOptions::default()
            },
            self.layers(),
        )
    }

    pub(crate) fn freeze_with(
        &self,
        volume: &Path,
        options: &FreezeOptions,
        layers: Layers,
    ) -> Result<Arc<dyn FrozenImage>, FreezeError> {
        freeze(volume, options, &Arc::new(layers), &self.clock)
    }

    /// Opens an origin, and its copy area of 2 MiB.
    pub(crate) fn origin(&self, origin: &Path, copy_area: &Path) -> Arc<Origin> {
        self.origin_with(origin, copy_area, self.layers())
    }

    pub(crate) fn origin_with(&self, origin: &Path, copy_area: &Path, layers: Layers) -> Arc<Origin> {
        let copy_area = CopyAreaSpec {
            path: copy_area.into(),
            size: Some(2 << 20),
            on_full: OnFull::Break,
        };
        Origin::open(origin, &copy_area, Arc::new(layers), Arc::clone(&self.clock)).unwrap()
    }

    /// Reads the frozen image as a proxy does, straight from the LUN where it may; gives the bytes and how many of them were direct.
    pub(crate) fn read_as_proxy(&self, image: &dyn FrozenImage) -> (Vec<u8>, usize) {
        read_from_luns(image, &[("id:lun0", &self.lun)])
    }
}

/// Reads a frozen image as a proxy does that has several LUNs, by identity.
pub(crate) fn read_from_luns(image: &dyn FrozenImage, luns: &[(&str, &Path)]) -> (Vec<u8>, usize) {
    let luns: Vec<(&str, Lun)> = luns.iter().map(|(name, path)| (*name, Lun::open(path))).collect();
    let mut bytes = Vec::new();
    let mut direct = 0;
    for extent in whole_status(image) {
        let start = usize::try_from(extent.range.start()).unwrap();
        let len = usize::try_from(extent.range.len()).unwrap();
        assert_eq!(start, bytes.len(), "status leaves no gaps");
        match (extent.content, extent.place) {
            (Content::Zero | Content::Hole, place) => {
                assert_eq!(place, None);
                bytes.resize(start + len, 0);
            }
            (Content::Data, None) => {
                assert!(!extent.generation.is_direct());
                bytes.resize(start + len, 0);
                image.read_at(extent.range.start(), &mut bytes[start..]).unwrap();
            }
            (Content::Data, Some(place)) => {
                assert!(extent.generation.is_direct());
                for (place, len) in disk_places(image, place, extent.range.len()) {
                    let graph = image.graph();
                    let identity = graph.store(place.store).identity.as_str();
                    let (_, lun) = luns
                        .iter()
                        .find(|(name, _)| *name == identity)
                        .expect("a known LUN");
                    bytes.extend(lun.read(place.offset, usize::try_from(len).unwrap()));
                }
                direct += len;
            }
        }
    }
    (bytes, direct)
}

/// Where the bytes of an extent lie on disks.
pub(crate) fn disk_places(image: &dyn FrozenImage, place: Place, len: u64) -> Vec<(Place, u64)> {
    let mut places = Vec::new();
    let mut done = 0;
    while done < len {
        let at = Place {
            offset: place.offset + done,
            ..place
        };
        let resolved = image.graph().resolve(at, len - done);
        places.push((resolved.disk().expect("a place leads to a disk"), resolved.len));
        done += resolved.len;
    }
    places
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Whatever failed, the rest is still taken down.
        let _ = run("umount", &["-q", path(&self.mount)]);
        for device in self.attached.iter().rev().chain([&self.device]) {
            let _ = run("losetup", &["-d", path(device)]);
        }
        let _ = self.directory.path();
    }
}

/// A new loop device that can be written to, unless the options say otherwise: `BLKROSET` of whoever had the number before outlives the attachment.
fn attach(below: &Path, options: &[&str]) -> Result<PathBuf, String> {
    let arguments = [&["--find", "--show"], options, &[path(below)]].concat();
    let device = PathBuf::from(run("losetup", &arguments)?.trim());
    run("blockdev", &["--setrw", path(&device)])?;
    Ok(device)
}

/// All of a frozen image's map.
pub(crate) fn whole_status(image: &dyn FrozenImage) -> Vec<StatusExtent> {
    let whole = ByteRange::new(0, image.size()).unwrap();
    image.status(whole, usize::MAX).unwrap().extents
}

/// All of a frozen image's bytes, as over NBD.
pub(crate) fn read_all(image: &dyn FrozenImage) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// `len` bytes that differ in every block.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A file with every odd 4 KiB block written first, then the even ones of the first half, flushed in between: many extents, holes,
/// preallocated blocks and a last block that is not full.
pub(crate) fn fragmented_file(file: &Path) -> Vec<u8> {
    let len = (8 << 20) + 1234;
    let mut bytes = vec![0; len];
    let f = File::create(file).unwrap();
    f.set_len(len as u64).unwrap();
    let mut write = |block: usize| {
        let end = ((block + 1) * BLOCK).min(len);
        let data = pattern(end - block * BLOCK, block as u64 + 1);
        f.write_all_at(&data, (block * BLOCK) as u64).unwrap();
        bytes[block * BLOCK..end].copy_from_slice(&data);
    };
    for block in (1..512).step_by(2) {
        write(block);
    }
    f.sync_all().unwrap();
    for block in (0..256).step_by(2).chain(1024..1500) {
        write(block);
    }
    f.sync_all().unwrap();
    write(len / BLOCK);
    volmap::sys::file_system::allocate(&f, 7 << 20, 512 << 10).unwrap();
    bytes
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {arguments:?}: {}", said.trim()))
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The shared disk as the proxy has it: O_DIRECT, read-only.
pub(crate) struct Lun(File);

impl Lun {
    pub(crate) fn open(path: &Path) -> Self {
        let mut options = OpenOptions::new();
        options.read(true);
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
        Self(direct.or_else(|_: io::Error| options.open(path)).unwrap())
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let before = usize::try_from(offset).unwrap() % BLOCK;
        let size = (before + len).next_multiple_of(BLOCK);
        let mut buffer = vec![0; size + BLOCK];
        let start = buffer.as_ptr().align_offset(BLOCK);
        self.0
            .read_exact_at(&mut buffer[start..start + size], offset - before as u64)
            .unwrap();
        buffer[start + before..start + before + len].to_vec()
    }
}
