//! Real files: leases, FIEMAP, O_DIRECT, on the file system of the temporary directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use tempfile::TempDir;

use crate::cow::tests::bench::{original, read_all};
use crate::cow::{CopyAreaSpec, CowError, OnFull, Origin};
use crate::frozen::{Attestation, FrozenError};
use crate::generation::GenerationClock;
use crate::identity::Identity;
use crate::layers::Layers;
use crate::limits::{COPY_AREA_MIN, COPY_UNIT};
use crate::map::Content;
use crate::range::ByteRange;
use crate::storage::StorageError;
use crate::sys::fiemap::{self, ExtentFlags};

const SIZE: u64 = 5 * COPY_UNIT + 1;

struct Site {
    dir: TempDir,
    frozen: Vec<u8>,
}

impl Site {
    /// An origin of [`SIZE`] bytes, all data, and no copy area yet.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let frozen: Vec<u8> = (0..SIZE).map(original).collect();
        fs::write(dir.path().join("origin"), &frozen).unwrap();
        Self { dir, frozen }
    }

    fn origin(&self) -> PathBuf {
        self.dir.path().join("origin")
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    fn open_with(&self, layers: Layers, size: Option<u64>) -> Result<Arc<Origin>, CowError> {
        let copy_area = CopyAreaSpec {
            path: self.copy(),
            size,
            on_full: OnFull::Break,
        };
        let clock = Arc::new(GenerationClock::start().unwrap());
        Origin::open(&self.origin(), &copy_area, Arc::new(layers), clock)
    }

    fn open(&self) -> Arc<Origin> {
        self.open_with(no_disks(), None).unwrap()
    }
}

fn no_disks() -> Layers {
    Layers::new(Vec::new()).unwrap()
}

/// An opener that does not wait: EAGAIN, and the break is pending all the same.
fn intrude(path: &Path, write: bool) {
    let opened = OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    assert_eq!(
        opened.map(drop).map_err(|e| e.kind()),
        Err(io::ErrorKind::WouldBlock)
    );
}

fn whole() -> ByteRange {
    ByteRange::new(0, SIZE).unwrap()
}

#[test]
fn an_origin_on_files_is_witnessed_and_keeps_its_frozen_view() {
    let site = Site::new();
    let live = site.open();
    for round in 0..2_u8 {
        let mut before = vec![0; SIZE as usize];
        live.read_at(0, &mut before).unwrap();
        let image = live.freeze().unwrap();
        assert_eq!(image.description().attestation, Attestation::Witnessed);
        assert!(live.last_freeze_window().is_some());
        live.write_at(COPY_UNIT - 3, &[round; 7], true).unwrap();
        live.trim(3 * COPY_UNIT, COPY_UNIT + 17, false).unwrap();
        live.write_at(SIZE - 1, &[round], false).unwrap();
        live.flush().unwrap();
        let extents = image.status(whole(), usize::MAX).unwrap().extents;
        assert!(extents.iter().any(|e| e.generation.is_direct()));
        assert!(read_all(&*image).unwrap() == before);
        for (offset, len) in [(0, 1), (COPY_UNIT - 1, 2), (COPY_UNIT + 511, 4097), (SIZE - 2, 2)] {
            let mut part = vec![0; len];
            image.read_at(offset, &mut part).unwrap();
            assert!(part == before[offset as usize..offset as usize + len]);
        }
        image.thaw();
    }
}

#[test]
fn a_reader_takes_the_locations_and_leaves_the_bytes() {
    for intruded in [Site::origin, Site::copy] {
        let site = Site::new();
        let live = site.open();
        let image = live.freeze().unwrap();
        live.write_at(0, &[1], false).unwrap();
        let before = image.status(whole(), usize::MAX).unwrap().extents;
        assert!(before.len() == 2 && before.iter().all(|e| e.generation.is_direct()));
        intrude(&intruded(&site), false);
        let after = image.status(whole(), usize::MAX).unwrap().extents;
        assert_eq!(after.len(), 1);
        assert!(!after[0].generation.is_direct() && after[0].place.is_none());
        assert!(read_all(&*image).unwrap() == site.frozen);

        // The reader has gone: the next freeze stands as if nothing had been.
        image.thaw();
        let next = live.freeze().unwrap();
        assert!(next.status(whole(), 1).unwrap().extents[0].generation.is_direct());
    }
}

#[test]
fn a_writer_ends_the_frozen_image() {
    for intruded in [Site::origin, Site::copy] {
        let site = Site::new();
        let live = site.open();
        let image = live.freeze().unwrap();
        intrude(&intruded(&site), true);
        assert!(matches!(image.status(whole(), 1), Err(FrozenError::Gone(_))));
        assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
        live.write_at(0, &[1], true).unwrap();
        assert!(
            live.freeze().is_ok(),
            "the writer has gone, and an image that is gone makes room"
        );
    }
}

/// A freeze renews what was lost, and must not make an image whole that has not noticed yet.
#[test]
fn a_writer_ends_every_frozen_image_also_those_that_nobody_asked() {
    for intruded in [Site::origin, Site::copy] {
        let site = Site::new();
        let live = site.open();
        let [one, two] = [live.freeze().unwrap(), live.freeze().unwrap()];
        intrude(&intruded(&site), true);
        let next = live.freeze().unwrap();
        let kept = intruded(&site) == site.copy();
        for older in [&one, &two] {
            let known = next.changed_since(&**older);
            assert_eq!(known.is_ok(), kept, "what changed of the origin: {known:?}");
        }
        assert!(read_all(&*next).unwrap() == site.frozen);
        for image in [one, two] {
            assert!(matches!(image.status(whole(), 1), Err(FrozenError::Gone(_))));
            assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
        }
    }
}

#[test]
fn a_reader_takes_the_locations_of_every_frozen_image_until_all_are_thawed() {
    for intruded in [Site::origin, Site::copy] {
        let site = Site::new();
        let live = site.open();
        let one = live.freeze().unwrap();
        intrude(&intruded(&site), false);
        let two = live.freeze().unwrap();
        live.write_at(0, &[1], false).unwrap();
        for image in [&one, &two] {
            let extents = image.status(whole(), usize::MAX).unwrap().extents;
            assert!(
                extents
                    .iter()
                    .all(|e| !e.generation.is_direct() && e.place.is_none())
            );
            assert!(read_all(&**image).unwrap() == site.frozen);
        }
        one.thaw();
        two.thaw();
        let next = live.freeze().unwrap();
        assert!(next.status(whole(), 1).unwrap().extents[0].generation.is_direct());
    }
}

#[test]
fn leases_end_with_the_origin() {
    let site = Site::new();
    let live = site.open();
    let image = live.freeze().unwrap();
    image.thaw();
    drop(live);
    intrude(&site.origin(), true);
    drop(image);
    for path in [site.origin(), site.copy()] {
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .unwrap();
    }
    // The copy area of an earlier run is known again.
    site.open().freeze().unwrap();
}

#[test]
fn a_file_that_is_open_elsewhere_is_refused() {
    let site = Site::new();
    drop(site.open());
    for path in [site.origin(), site.copy()] {
        let other = File::open(&path).unwrap();
        let refused = site.open_with(no_disks(), None).map(drop);
        assert!(
            matches!(refused, Err(CowError::Storage(StorageError::InUse { path: told, .. })) if told == path)
        );
        drop(other);
    }
    site.open();
}

#[test]
fn a_declared_disk_is_one_origin_or_copy_area_only() {
    let site = Site::new();
    File::create(site.copy()).unwrap();
    let declared = || {
        let disk = |path, name| (path, Identity::from_operator(name).unwrap());
        Layers::new(vec![disk(site.origin(), "lun0"), disk(site.copy(), "lun1")]).unwrap()
    };
    let _live = site.open_with(declared(), None).unwrap();
    let open = |origin: &str, copy: &str| {
        fs::write(site.dir.path().join("other"), [1; COPY_UNIT as usize]).unwrap();
        let area = CopyAreaSpec {
            path: site.dir.path().join(copy),
            size: Some(COPY_AREA_MIN),
            on_full: OnFull::Break,
        };
        let clock = Arc::new(GenerationClock::start().unwrap());
        Origin::open(&site.dir.path().join(origin), &area, Arc::new(declared()), clock)
    };
    // No lease tells these from a proxy on the same machine. Each would overwrite the old data of the other.
    for (origin, copy) in [("origin", "new"), ("other", "copy"), ("copy", "new")] {
        let refused = open(origin, copy).map(|_| ());
        assert!(
            matches!(refused, Err(CowError::Storage(StorageError::InUse { .. }))),
            "{origin} {copy}: {refused:?}"
        );
    }
    open("other", "new").unwrap();
    // A proxy that reads its LUN says so by a shared lock, and is not hindered.
    File::open(site.origin()).unwrap().try_lock_shared().unwrap();
}

#[test]
fn locations_on_declared_disks_hold_the_frozen_bytes() {
    let site = Site::new();
    File::create(site.copy()).unwrap();
    let [lun0, lun1] = ["lun0", "lun1"].map(|name| Identity::from_operator(name).unwrap());
    let layers = Layers::new(vec![(site.origin(), lun0.clone()), (site.copy(), lun1.clone())]).unwrap();
    let live = site.open_with(layers, None).unwrap();
    let image = live.freeze().unwrap();
    assert_eq!(image.description().attestation, Attestation::Unattested);
    live.write_zeroes(COPY_UNIT, 2 * COPY_UNIT, false, false).unwrap();
    live.write_at(SIZE - 1, &[0], false).unwrap();

    // A proxy on the same machine opens the disks: no harm to those that are declared.
    let proxy = [site.origin(), site.copy()].map(|path| File::open(path).unwrap());
    let mut moved = 0;
    for extent in image.status(whole(), usize::MAX).unwrap().extents {
        let resolved = image.graph().resolve(extent.place.unwrap(), extent.range.len());
        assert_eq!(resolved.len, extent.range.len());
        let disk = resolved.disk().unwrap();
        let nth = [&lun0, &lun1]
            .iter()
            .position(|id| **id == image.graph().store(disk.store).identity);
        let mut bytes = vec![0; extent.range.len() as usize];
        proxy[nth.unwrap()]
            .read_exact_at(&mut bytes, disk.offset)
            .unwrap();
        assert!(bytes == site.frozen[extent.range.start() as usize..extent.range.end() as usize]);
        moved += if nth == Some(1) { extent.range.len() } else { 0 };
    }
    assert_eq!(moved, 2 * COPY_UNIT + 1);
    assert!(
        image.status(whole(), 1).unwrap().extents[0]
            .generation
            .is_direct()
    );
}

#[test]
fn every_block_of_the_copy_area_is_written_before_it_is_needed() {
    let site = Site::new();
    // A sparse file of zeroes, half of it preallocated.
    let sparse = File::create(site.copy()).unwrap();
    sparse.set_len(9 * COPY_UNIT + 100).unwrap();
    crate::sys::file_system::allocate(&sparse, 0, 4 * COPY_UNIT).unwrap();
    drop(sparse);
    let live = site.open();
    assert_eq!(live.copy_area_use().size, 8 * COPY_UNIT);
    drop(live);
    let extents = match fiemap::extents(&File::open(site.copy()).unwrap()) {
        Ok(extents) => extents,
        Err(error) => {
            // `tests/run` counts the lines of this file.
            let line = format!("SKIP: {}: no FIEMAP here: {error}\n", site.copy().display());
            eprint!("{line}");
            if let Some(log) = std::env::var_os("SKIP_LOG") {
                let mut log = File::options().create(true).append(true).open(log).unwrap();
                log.write_all(line.as_bytes()).unwrap();
            }
            return;
        }
    };
    assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), 9 * COPY_UNIT);
    assert!(
        extents
            .iter()
            .all(|e| !e.flags.intersects(ExtentFlags::UNWRITTEN))
    );
}

#[test]
fn copy_areas_that_cannot_be_are_refused_and_leave_nothing_behind() {
    let site = Site::new();
    for size in [0, COPY_AREA_MIN - 1] {
        let refused = site.open_with(no_disks(), Some(size)).map(drop);
        assert!(
            matches!(refused, Err(CowError::CopyAreaTooSmall { .. })),
            "{refused:?}"
        );
    }
    // More than any file, and more than the disk of the tests.
    for size in [1 << 62, 1 << 43] {
        let refused = site.open_with(no_disks(), Some(size)).map(drop);
        assert!(
            matches!(refused, Err(CowError::Storage(StorageError::NoRoom { .. }))),
            "{refused:?}"
        );
        assert!(!site.copy().exists());
    }
    site.open_with(no_disks(), Some(COPY_AREA_MIN)).unwrap();
    fs::remove_file(site.copy()).unwrap();

    for link in [std::os::unix::fs::symlink::<PathBuf, PathBuf>, fs::hard_link] {
        link(site.origin(), site.copy()).unwrap();
        let refused = site.open_with(no_disks(), None).map(drop);
        assert!(
            matches!(refused, Err(CowError::CopyAreaIsOrigin { .. })),
            "{refused:?}"
        );
        fs::remove_file(site.copy()).unwrap();
    }

    // Somebody's data: at the very start, at the very end, and where btrfs has its first mark.
    for at in [0, (4 << 20) - 1, 64 << 10] {
        let theirs = File::create(site.copy()).unwrap();
        theirs.set_len(4 << 20).unwrap();
        theirs.write_all_at(b"x", at).unwrap();
        drop(theirs);
        let refused = site.open_with(no_disks(), None).map(drop);
        assert!(
            matches!(refused, Err(CowError::Storage(StorageError::Foreign { .. }))),
            "{refused:?}"
        );
        let mut kept = [0];
        File::open(site.copy())
            .unwrap()
            .read_exact_at(&mut kept, at)
            .unwrap();
        assert_eq!(kept, *b"x");
    }
    fs::remove_file(site.copy()).unwrap();
    fs::create_dir(site.copy()).unwrap();
    assert!(site.open_with(no_disks(), None).is_err());
}

#[test]
fn blocks_go_back_to_the_file_system_only_while_nothing_is_frozen() {
    let site = Site::new();
    let live = site.open();
    let blocks = || fs::metadata(site.origin()).unwrap().blocks();
    live.flush().unwrap();
    let all = blocks();
    let image = live.freeze().unwrap();
    live.trim(0, COPY_UNIT, true).unwrap();
    assert_eq!(blocks(), all);
    image.thaw();
    live.trim(0, COPY_UNIT, true).unwrap();
    assert!(blocks() < all);
    let image = live.freeze().unwrap();
    let extents = image.status(whole(), usize::MAX).unwrap().extents;
    assert_eq!(extents[0].content, Content::Hole);
    assert_eq!(extents[0].range.len(), COPY_UNIT);
}
