//! A btrfs on several LUNs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use volmap::freeze::{FreezeOptions, Method};
use volmap::frozen::FrozenImage;
use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::range::ByteRange;
use volmap::store::Place;

use crate::rig::{Rig, disk_places, path, pattern, read_from_luns, run, whole_status};

/// Sparse: enough that the chunks after the first are of another size than that.
const LUN_MIB: u64 = 1024;

/// The LUNs of a pool, `id:lun0` and so on; the last ones may be spare. Unmounted and detached when dropped.
pub(super) struct Pool {
    rigs: Vec<Rig>,
}

impl Pool {
    /// A pool of `devices` LUNs and some spare ones; `None`, with a `SKIP:` line, where this machine cannot.
    pub(super) fn new(test: &str, profile: &str, devices: usize, spare: usize) -> Option<Self> {
        let rigs: Option<Vec<Rig>> = (0..devices + spare)
            .map(|_| Rig::new(test, LUN_MIB, &[]))
            .collect();
        let pool = Self { rigs: rigs? };
        let mut mkfs = vec![
            "-q",
            "-f",
            "-m",
            if devices > 1 { "raid1" } else { "dup" },
            "-d",
            profile,
        ];
        mkfs.extend(pool.rigs[..devices].iter().map(|rig| path(&rig.device)));
        run("mkfs.btrfs", &mkfs).unwrap();
        for rig in &pool.rigs[..devices] {
            run("btrfs", &["device", "scan", path(&rig.device)]).unwrap();
        }
        pool.mount(&[]);
        Some(pool)
    }

    pub(super) fn mount(&self, options: &[&str]) {
        let arguments = [options, &[path(&self.rigs[0].device), path(self.root())]].concat();
        run("mount", &arguments).unwrap();
    }

    pub(super) fn root(&self) -> &Path {
        &self.rigs[0].mount
    }

    pub(super) fn lun(&self, number: usize) -> &Path {
        &self.rigs[number].lun
    }

    pub(super) fn device(&self, number: usize) -> &str {
        path(&self.rigs[number].device)
    }

    pub(super) fn layers(&self) -> Layers {
        let declared = self.rigs.iter().zip(0..).map(|(rig, number): (&Rig, usize)| {
            (
                rig.lun.clone(),
                Identity::from_operator(&format!("lun{number}")).unwrap(),
            )
        });
        Layers::new(declared.collect()).unwrap()
    }

    pub(super) fn rig(&self) -> &Rig {
        &self.rigs[0]
    }

    pub(super) fn freeze(&self, volume: &Path, method: Method) -> Arc<dyn FrozenImage> {
        let options = FreezeOptions {
            method,
            ..FreezeOptions::default()
        };
        self.rigs[0].freeze_with(volume, &options, self.layers()).unwrap()
    }

    pub(super) fn read_as_proxy(&self, image: &dyn FrozenImage) -> (Vec<u8>, usize) {
        let names: Vec<String> = (0..self.rigs.len())
            .map(|number| format!("id:lun{number}"))
            .collect();
        let luns: Vec<(&str, &Path)> = names
            .iter()
            .zip(&self.rigs)
            .map(|(name, rig)| (name.as_str(), &*rig.lun))
            .collect();
        read_from_luns(image, &luns)
    }

    /// Writes what fills the first chunk and more, so that the volume comes to lie behind it; then the volume, in pieces with holes.
    pub(super) fn volume(&self, directory: &Path, mib: usize) -> (PathBuf, Vec<u8>) {
        fs::write(directory.join("filler"), pattern(40 << 20, 9)).unwrap();
        File::open(directory).unwrap().sync_all().unwrap();
        run("sync", &["-f", path(directory)]).unwrap();
        // Chunks that are made anew get new addresses, and the second time old places.
        for _ in 0..2 {
            run("btrfs", &["balance", "start", "-d", path(self.root())]).unwrap();
        }
        let volume = directory.join("disk.img");
        let mut bytes = pattern((mib << 20) + 1234, 1);
        bytes[3 << 20..5 << 20].fill(0);
        run("truncate", &["-s", &bytes.len().to_string(), path(&volume)]).unwrap();
        let file = File::options().write(true).open(&volume).unwrap();
        let write = |from: usize, to: usize| {
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes[from..to], from as u64).unwrap();
        };
        write(0, 1 << 20);
        file.sync_all().unwrap();
        write(5 << 20, bytes.len());
        file.sync_all().unwrap();
        write(1 << 20, 3 << 20);
        (volume, bytes)
    }
}

/// Whether the first extent may be read directly now.
pub(super) fn is_direct(image: &dyn FrozenImage) -> bool {
    let status = image.status(ByteRange::new(0, 4096).unwrap(), 1).unwrap().extents;
    status[0].generation.is_direct()
}

/// Waits until what was moved is mapped again.
pub(super) fn await_direct(image: &dyn FrozenImage) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_direct(image) {
        assert!(Instant::now() < until, "it is not mapped again");
        thread::sleep(Duration::from_millis(20));
    }
}

/// All places of a frozen image on disks, with the offset in the image.
pub(super) fn places(image: &dyn FrozenImage) -> Vec<(u64, Place, u64)> {
    let mut found = Vec::new();
    for extent in whole_status(image) {
        let Some(place) = extent.place else { continue };
        let mut offset = extent.range.start();
        for (place, len) in disk_places(image, place, extent.range.len()) {
            found.push((offset, place, len));
            offset += len;
        }
    }
    found
}
