//! What moves extents on btrfs with the lease intact, and how it is noticed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use volmap::freeze::Method;
use volmap::frozen::FrozenImage;
use volmap::sys::lease::{self, Held};
use volmap::sys::{fiemap, inode_flags};

use super::pool::{Pool, await_direct, is_direct, places};
use crate::rig::{Lun, path, pattern, read_all, run};

/// A clone of a volume, frozen and directly readable.
fn frozen(pool: &Pool) -> (Arc<dyn FrozenImage>, Vec<u8>) {
    let (volume, bytes) = pool.volume(pool.root(), 24);
    let image = pool.freeze(&volume, Method::Reflink);
    assert!(is_direct(&*image));
    (image, bytes)
}

fn clone_of(pool: &Pool) -> PathBuf {
    let mut entries = fs::read_dir(pool.root())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.find(|entry| path(entry).ends_with(".frozen")).unwrap()
}

/// Writes over every free byte, so that what was moved away from is overwritten.
fn fill(pool: &Pool) {
    let file = File::create(pool.root().join("fill")).unwrap();
    let bytes = pattern(8 << 20, 4711);
    for offset in (0..).step_by(8 << 20) {
        if file
            .write_all_at(&bytes, offset)
            .and_then(|()| file.sync_data())
            .is_err()
        {
            break;
        }
    }
}

#[test]
fn a_balance_ends_direct_reads_before_the_old_places_are_used_again() {
    let Some(pool) = Pool::new(
        "btrfs::a_balance_ends_direct_reads_before_the_old_places_are_used_again",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let (image, bytes) = frozen(&pool);
    let stale = places(&*image);
    run("btrfs", &["balance", "start", "-d", path(pool.root())]).unwrap();
    assert!(!is_direct(&*image), "nobody looked while it ran");
    assert!(read_all(&*image) == bytes);
    // It was high time: the old places hold other bytes now.
    fill(&pool);
    let lun = Lun::open(pool.lun(0));
    let wrong = stale.iter().any(|&(offset, place, len)| {
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        lun.read(place.offset, len) != bytes[offset..offset + len]
    });
    assert!(wrong, "this test proves nothing if nothing moved");
    assert!(read_all(&*image) == bytes);
    // Where it lies by now is told, too, by then or soon.
    await_direct(&*image);
    let (read, direct) = pool.read_as_proxy(&*image);
    assert!(read == bytes && direct > 0);
    assert_ne!(places(&*image), stale);
}

#[test]
fn a_balance_leaves_lease_flag_and_change_time_alone() {
    let Some(pool) = Pool::new(
        "btrfs::a_balance_leaves_lease_flag_and_change_time_alone",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let (_, bytes) = pool.volume(pool.root(), 24);
    let file = File::open(pool.root().join("disk.img")).unwrap();
    inode_flags::set_immutable(&file, true).unwrap();
    lease::take_read(&file).unwrap();
    let facts = || {
        let metadata = file.metadata().unwrap();
        let places: Vec<u64> = fiemap::extents(&file)
            .unwrap()
            .iter()
            .map(|extent| extent.physical)
            .collect();
        (metadata.modified().unwrap(), places)
    };
    let before = facts();
    run("btrfs", &["balance", "start", "-d", path(pool.root())]).unwrap();
    let after = facts();
    assert_eq!(lease::held(&file).unwrap(), Held::Read);
    assert_eq!(before.0, after.0);
    assert_ne!(before.1, after.1, "this is why the trees are looked at");
    assert!(fs::read(pool.root().join("disk.img")).unwrap() == bytes);
    inode_flags::set_immutable(&file, false).unwrap();
}

#[test]
fn a_defragmentation_by_root_ends_direct_reads() {
    let Some(pool) = Pool::new(
        "btrfs::a_defragmentation_by_root_ends_direct_reads",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let volume = pool.root().join("disk.img");
    let bytes = pattern(2 << 20, 3);
    let file = File::create(&volume).unwrap();
    // Backwards, so that nothing lies beside its neighbour.
    for block in (0..512).rev() {
        file.write_all_at(&bytes[block * 4096..(block + 1) * 4096], block as u64 * 4096)
            .unwrap();
        if block % 8 == 0 {
            file.sync_data().unwrap();
        }
    }
    drop(file);
    let image = pool.freeze(&volume, Method::Reflink);
    assert!(is_direct(&*image));
    let clone = clone_of(&pool);
    let layout = || -> Vec<u64> {
        let extents = fiemap::extents(&File::open(&clone).unwrap()).unwrap();
        extents.iter().map(|extent| extent.physical).collect()
    };
    let before = layout();
    let said = run("btrfs", &["filesystem", "defragment", "-f", path(&clone)]);
    run("sync", &["-f", path(pool.root())]).unwrap();
    assert_eq!(is_direct(&*image), layout() == before, "{said:?}");
    assert!(read_all(&*image) == bytes);
    // Where it was let in, and the lease still stands.
    assert!(pool.read_as_proxy(&*image).0 == bytes);
}

#[test]
fn a_device_that_is_replaced_ends_direct_reads() {
    let Some(pool) = Pool::new(
        "btrfs::a_device_that_is_replaced_ends_direct_reads",
        "raid1",
        2,
        1,
    ) else {
        return;
    };
    let (image, bytes) = frozen(&pool);
    run(
        "btrfs",
        &[
            "replace",
            "start",
            "-B",
            "-f",
            "1",
            pool.device(2),
            path(pool.root()),
        ],
    )
    .unwrap();
    assert!(!is_direct(&*image));
    assert!(read_all(&*image) == bytes);
    await_direct(&*image);
    assert!(pool.read_as_proxy(&*image).0 == bytes);
    drop(image);
    let image = pool.freeze(&pool.root().join("disk.img"), Method::Reflink);
    assert!(is_direct(&*image));
    assert!(pool.read_as_proxy(&*image).0 == bytes);
}

#[test]
fn a_device_that_is_removed_ends_direct_reads() {
    let Some(pool) = Pool::new(
        "btrfs::a_device_that_is_removed_ends_direct_reads",
        "single",
        2,
        0,
    ) else {
        return;
    };
    run(
        "btrfs",
        &["balance", "start", "-mconvert=single", "-f", path(pool.root())],
    )
    .unwrap();
    let (image, bytes) = frozen(&pool);
    let (_, place, _) = places(&*image)[0];
    let used = usize::from(image.graph().store(place.store).identity.as_str() == "id:lun1");
    run(
        "btrfs",
        &["device", "remove", pool.device(used), path(pool.root())],
    )
    .unwrap();
    assert!(!is_direct(&*image));
    assert!(read_all(&*image) == bytes);
    // On the other device, which it did not lie on at the freeze.
    await_direct(&*image);
    let (_, place, _) = places(&*image)[0];
    let graph = image.graph();
    let other = ["id:lun1", "id:lun0"][used];
    assert_eq!(graph.store(place.store).identity.as_str(), other);
    assert!(pool.read_as_proxy(&*image).0 == bytes);
    drop(image);
    let image = pool.freeze(&pool.root().join("disk.img"), Method::Reflink);
    assert!(is_direct(&*image));
    assert!(pool.read_as_proxy(&*image).0 == bytes);
}

#[test]
fn what_others_do_beside_it_costs_nothing() {
    let Some(pool) = Pool::new("btrfs::what_others_do_beside_it_costs_nothing", "single", 1, 0) else {
        return;
    };
    let (image, bytes) = frozen(&pool);
    for number in 0..50 {
        fs::write(
            pool.root().join(format!("neighbour{number}")),
            pattern(100_000, number),
        )
        .unwrap();
    }
    // Enough for a new chunk.
    fs::write(pool.root().join("large"), pattern(128 << 20, 8)).unwrap();
    run("sync", &["-f", path(pool.root())]).unwrap();
    // Reading it changes its inode: access time.
    assert!(read_all(&*image) == bytes);
    for number in 0..25 {
        fs::remove_file(pool.root().join(format!("neighbour{number}"))).unwrap();
    }
    run("sync", &["-f", path(pool.root())]).unwrap();
    assert!(is_direct(&*image));
    assert!(pool.read_as_proxy(&*image).0 == bytes);
}
