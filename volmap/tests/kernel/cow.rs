//! Origins under copy-before-write on real file systems, and what others do to their files between two freezes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use volmap::cow::{CopyAreaSpec, CowError, OnFull, Origin};
use volmap::frozen::{Attestation, FrozenImage};
use volmap::generation::GenerationClock;
use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::limits::COPY_AREA_HEADER;
use volmap::storage::StorageError;
use volmap::sys::clone::clone_file;

use crate::rig::{Rig, path, pattern, read_all, run, whole_status};

const SIZE: usize = 1 << 20;

/// Overwrites the whole origin, and reads the frozen image both ways.
fn overwrite_and_compare(rig: &Rig, live: &Origin, image: &dyn FrozenImage) {
    live.write_at(0, &pattern(SIZE, 2), true).unwrap();
    assert!(read_all(image) == pattern(SIZE, 1));
    let (bytes, direct) = rig.read_as_proxy(image);
    assert!(bytes == pattern(SIZE, 1), "stale bytes at a published place");
    assert_eq!(direct, SIZE);
}

#[test]
fn places_in_the_copy_area_hold_the_frozen_bytes() {
    let test = "places_in_the_copy_area_hold_the_frozen_bytes";
    for rig in [Rig::xfs(test), Rig::ext4(test)].into_iter().flatten() {
        let origin = rig.mount.join("origin");
        fs::write(&origin, pattern(SIZE, 1)).unwrap();
        let live = rig.origin(&origin, &rig.mount.join("copy"));
        let image = live.freeze().unwrap();
        overwrite_and_compare(&rig, &live, &*image);
    }
}

/// Another process clones the copy area between two freezes; the clone stays.
fn clone_copy_area(rig: &Rig, live: &Arc<Origin>, copy_area: &Path) {
    thread::scope(|scope| {
        // Waits in `open` for the lease, which a freeze gives up.
        let intruder = scope.spawn(|| File::open(copy_area).unwrap());
        while !intruder.is_finished() {
            let _ = live.freeze();
        }
        let twin = File::create_new(rig.mount.join("twin")).unwrap();
        clone_file(&intruder.join().unwrap(), &twin).unwrap();
    });
}

#[test]
fn a_copy_area_that_was_cloned_between_two_freezes_is_settled_again() {
    let Some(rig) = Rig::xfs("a_copy_area_that_was_cloned_between_two_freezes_is_settled_again") else {
        return;
    };
    let (origin, copy_area) = (rig.mount.join("origin"), rig.mount.join("copy"));
    fs::write(&origin, pattern(SIZE, 1)).unwrap();
    let live = rig.origin(&origin, &copy_area);
    clone_copy_area(&rig, &live, &copy_area);
    let image = live.freeze().unwrap();
    overwrite_and_compare(&rig, &live, &*image);
}

#[test]
fn a_copy_area_that_could_not_be_settled_again_is_settled_by_a_later_freeze() {
    let test = "a_copy_area_that_could_not_be_settled_again_is_settled_by_a_later_freeze";
    let Some(rig) = Rig::xfs(test) else { return };
    let (origin, copy_area) = (rig.mount.join("origin"), rig.mount.join("copy"));
    fs::write(&origin, pattern(SIZE, 1)).unwrap();
    let live = rig.origin(&origin, &copy_area);
    clone_copy_area(&rig, &live, &copy_area);
    // No room to take the blocks apart.
    let filler = rig.mount.join("filler");
    fs::create_dir(&filler).unwrap();
    for kib in [64 << 10, 8 << 10, 1 << 10, 128, 16, 4] {
        let allocate = |at: &Path| run("fallocate", &["-l", &format!("{kib}KiB"), path(at)]);
        while allocate(&filler.join(format!("{kib}-{}", fs::read_dir(&filler).unwrap().count()))).is_ok() {}
    }
    for _ in 0..2 {
        let refused = live.freeze().map(drop).unwrap_err();
        assert!(
            refused.to_string().contains("writing it once all over again"),
            "{refused}"
        );
    }
    fs::remove_dir_all(&filler).unwrap();
    let image = live.freeze().unwrap();
    overwrite_and_compare(&rig, &live, &*image);
}

#[test]
fn an_origin_that_shares_its_blocks_keeps_its_frozen_view() {
    let Some(rig) = Rig::xfs("an_origin_that_shares_its_blocks_keeps_its_frozen_view") else {
        return;
    };
    let (origin, sibling) = (rig.mount.join("origin"), rig.mount.join("sibling"));
    fs::write(&sibling, pattern(SIZE, 1)).unwrap();
    let sibling = File::options().read(true).write(true).open(sibling).unwrap();
    clone_file(&sibling, &File::create_new(&origin).unwrap()).unwrap();
    let live = rig.origin(&origin, &rig.mount.join("copy"));
    let image = live.freeze().unwrap();
    for unit in (0..16).step_by(3) {
        // Once the origin has a block of its own, the sibling overwrites the old one in place.
        live.write_at(unit * 65536 + 4096, &pattern(8192, 7), true)
            .unwrap();
        sibling.write_all_at(&pattern(SIZE, 100 + unit), 0).unwrap();
        sibling.sync_all().unwrap();
        assert_eq!(rig.read_as_proxy(&*image), (pattern(SIZE, 1), SIZE));
    }
    overwrite_and_compare(&rig, &live, &*image);
}

#[test]
fn a_file_system_and_a_copy_of_it_are_told_apart() {
    let test = "a_file_system_and_a_copy_of_it_are_told_apart";
    let (Some(rig), Some(other)) = (Rig::ext4(test), Rig::new(test, 128, &[])) else {
        return;
    };
    run("umount", &[path(&rig.mount)]).unwrap();
    fs::copy(&rig.lun, &other.lun).unwrap();
    for rig in [&rig, &other] {
        run("mount", &[path(&rig.device), path(&rig.mount)]).unwrap();
    }
    let origin = rig.mount.join("origin");
    fs::write(&origin, pattern(SIZE, 1)).unwrap();
    let lun = |rig: &Rig, name| (rig.lun.clone(), Identity::from_operator(name).unwrap());
    let layers = Layers::new(vec![lun(&rig, "lun0"), lun(&other, "lun1")]).unwrap();
    let live = rig.origin_with(&origin, &other.mount.join("copy"), layers);
    let image = live.freeze().unwrap();
    assert_eq!(rig.read_as_proxy(&*image), (pattern(SIZE, 1), SIZE));
    live.write_at(0, &pattern(SIZE, 2), false).unwrap();
    for extent in whole_status(&*image) {
        let resolved = image.graph().resolve(extent.place.unwrap(), extent.range.len());
        let graph = image.graph();
        let disk = graph.store(resolved.disk().unwrap().store);
        assert_eq!(disk.identity.as_str(), "id:lun1");
    }
}

/// The blocks of a device have their places at once: nothing but the header is written before it is needed.
#[test]
fn an_origin_and_its_copy_area_may_be_partitions_of_one_lun() {
    let test = "an_origin_and_its_copy_area_may_be_partitions_of_one_lun";
    let Some(mut rig) = Rig::new(test, 16, &[]) else {
        return;
    };
    let lun = rig.lun.clone();
    let device = rig.attach(&lun, &["--direct-io=on", "--partscan"]);
    run(
        "addpart",
        &[path(&device), "1", "2049", &(SIZE / 512).to_string()],
    )
    .unwrap();
    run("addpart", &[path(&device), "2", "16384", "8192"]).unwrap();
    let [origin, copy_area] = ["p1", "p2"].map(|part| PathBuf::from(format!("{}{part}", path(&device))));
    let write = |device: &Path, bytes: &[u8], at| {
        let file = File::options().write(true).open(device).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    };
    write(&origin, &pattern(SIZE, 1), 0);
    let untouched = 3 << 19;
    write(&copy_area, b"somebody's", untouched);

    let live = rig.origin(&origin, &copy_area);
    let layers = || Arc::new(rig.layers());
    let spec = |path: &Path| CopyAreaSpec {
        path: path.into(),
        size: None,
        on_full: OnFull::Break,
    };
    let again = Origin::open(&origin, &spec(&copy_area), layers(), clock()).map(drop);
    assert!(
        matches!(again, Err(CowError::Storage(StorageError::InUse { .. }))),
        "{again:?}"
    );
    let image = live.freeze().unwrap();
    assert_eq!(image.description().attestation, Attestation::Unattested);
    overwrite_and_compare(&rig, &live, &*image);
    let mut kept = [0; 10];
    File::open(&lun)
        .unwrap()
        .read_exact_at(&mut kept, (16384 * 512) + untouched)
        .unwrap();
    assert_eq!(&kept, b"somebody's", "not written over");
    drop((image, live));

    // It is known again, and a device that holds something else is not taken for one.
    let live = Origin::open(&origin, &spec(&copy_area), layers(), clock()).unwrap();
    assert_eq!(live.copy_area_use().size, (4 << 20) - COPY_AREA_HEADER);
    drop(live);
    write(&copy_area, b"!", 0);
    let refused = Origin::open(&origin, &spec(&copy_area), layers(), clock()).map(drop);
    assert!(
        matches!(refused, Err(CowError::Storage(StorageError::Foreign { .. }))),
        "{refused:?}"
    );
}

fn clock() -> Arc<GenerationClock> {
    Arc::new(GenerationClock::start().unwrap())
}
