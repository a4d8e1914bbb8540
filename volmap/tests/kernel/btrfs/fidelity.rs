//! What is read from the LUNs is the file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use volmap::freeze::Method;
use volmap::frozen::{Attestation, FrozenImage, Stability};
use volmap::sys::fiemap;

use super::pool::{Pool, is_direct, places};
use crate::rig::{Lun, path, pattern, read_all, run};

/// How many 4 KiB blocks of the file one would read wrong by taking FIEMAP's addresses for offsets on the first device.
fn wrong_by_fiemap(pool: &Pool, file: &std::path::Path, bytes: &[u8]) -> usize {
    let lun = Lun::open(pool.lun(0));
    let end = pool.lun(0).metadata().unwrap().len();
    let mut wrong = 0;
    for extent in fiemap::extents(&File::open(file).unwrap()).unwrap() {
        for block in (0..extent.len).step_by(4096) {
            let at = usize::try_from(extent.logical + block).unwrap();
            let expected = &bytes[at.min(bytes.len())..(at + 4096).min(bytes.len())];
            let there = extent.physical + block + 4096 <= end;
            wrong += usize::from(!there || lun.read(extent.physical + block, expected.len()) != expected);
        }
    }
    wrong
}

fn every_byte_is_read(test: &str, profile: &str, devices: usize) {
    let Some(pool) = Pool::new(test, profile, devices, 0) else {
        return;
    };
    let (volume, frozen) = pool.volume(pool.root(), 24);
    let image = pool.freeze(&volume, Method::Auto);
    let description = image.description();
    assert_eq!(
        (description.method, description.stability, description.attestation),
        ("reflink", Stability::Pinned, Attestation::Witnessed)
    );
    assert!(
        wrong_by_fiemap(&pool, &volume, &frozen) > 100,
        "the first chunk lies where FIEMAP says; this has to be behind it"
    );
    // The live file goes elsewhere.
    let live = File::options().write(true).open(&volume).unwrap();
    live.write_all_at(&pattern(4 << 20, 77), 6 << 20).unwrap();
    live.sync_all().unwrap();
    let (bytes, direct) = pool.read_as_proxy(&*image);
    assert!(
        bytes == frozen,
        "what was read from the LUNs is not what was frozen"
    );
    assert_eq!(direct, frozen.len() - (2 << 20));
    assert!(read_all(&*image) == frozen);
    assert!(is_direct(&*image));
}

#[test]
fn single_is_translated() {
    every_byte_is_read("btrfs::single_is_translated", "single", 1);
}

#[test]
fn dup_is_translated() {
    every_byte_is_read("btrfs::dup_is_translated", "dup", 1);
}

#[test]
fn raid1_is_translated() {
    // On two devices their addresses happen to be those of FIEMAP.
    every_byte_is_read("btrfs::raid1_is_translated", "raid1", 3);
    every_byte_is_read("btrfs::raid1_is_translated", "raid1c3", 3);
    every_byte_is_read("btrfs::raid1_is_translated", "raid1c4", 4);
}

#[test]
fn raid0_is_translated() {
    every_byte_is_read("btrfs::raid0_is_translated", "raid0", 2);
    every_byte_is_read("btrfs::raid0_is_translated", "raid0", 3);
}

#[test]
fn raid10_is_translated() {
    every_byte_is_read("btrfs::raid10_is_translated", "raid10", 4);
}

#[test]
fn a_file_in_a_read_only_snapshot_is_read_without_a_flag_of_its_own() {
    let Some(pool) = Pool::new(
        "btrfs::a_file_in_a_read_only_snapshot_is_read_without_a_flag_of_its_own",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let (live, snapshot) = (pool.root().join("live"), pool.root().join("snapshot"));
    run("btrfs", &["-q", "subvolume", "create", path(&live)]).unwrap();
    let (volume, frozen) = pool.volume(&live, 24);
    run(
        "btrfs",
        &["-q", "subvolume", "snapshot", "-r", path(&live), path(&snapshot)],
    )
    .unwrap();
    let image = pool.freeze(&snapshot.join("disk.img"), Method::Auto);
    let description = image.description();
    assert_eq!(
        (description.method, description.stability),
        ("static", Stability::Pinned)
    );
    let writer = File::options().write(true).open(&volume).unwrap();
    for round in 0..50 {
        writer
            .write_all_at(&pattern(64 << 10, round), round * 7919 * 4096 % (24 << 20))
            .unwrap();
    }
    writer.sync_all().unwrap();
    let (bytes, direct) = pool.read_as_proxy(&*image);
    assert!(bytes == frozen);
    assert_eq!(direct, frozen.len() - (2 << 20));

    // Whoever makes it writable may do what he likes; so that it is not noticed by a writer alone.
    run("btrfs", &["property", "set", path(&snapshot), "ro", "false"]).unwrap();
    assert!(!is_direct(&*image));
    assert!(read_all(&*image) == frozen);
}

#[test]
fn a_file_that_is_overwritten_in_place_can_be_cloned_too() {
    let Some(pool) = Pool::new(
        "btrfs::a_file_that_is_overwritten_in_place_can_be_cloned_too",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let directory = pool.root().join("images");
    std::fs::create_dir(&directory).unwrap();
    run("chattr", &["+C", path(&directory)]).unwrap();
    let (volume, frozen) = pool.volume(&directory, 12);
    let image = pool.freeze(&volume, Method::Reflink);
    let writer = File::options().write(true).open(&volume).unwrap();
    writer.write_all_at(&pattern(4 << 20, 5), 5 << 20).unwrap();
    writer.sync_all().unwrap();
    let (bytes, direct) = pool.read_as_proxy(&*image);
    assert!(bytes == frozen);
    assert_eq!(direct, frozen.len() - (2 << 20));
}

#[test]
fn compressed_and_inline_extents_are_never_direct() {
    let Some(pool) = Pool::new(
        "btrfs::compressed_and_inline_extents_are_never_direct",
        "single",
        1,
        0,
    ) else {
        return;
    };
    run("umount", &[path(pool.root())]).unwrap();
    pool.mount(&["-o", "compress-force=zstd"]);
    let volume = pool.root().join("disk.img");
    let mut frozen = pattern(4 << 20, 1);
    frozen.extend(b"as compressible as can be ".iter().cycle().take(4 << 20));
    std::fs::write(&volume, &frozen).unwrap();
    let image = pool.freeze(&volume, Method::Auto);
    let (bytes, direct) = pool.read_as_proxy(&*image);
    assert!(bytes == frozen);
    assert!((1..=4 << 20).contains(&direct), "{direct}");
    drop(image);

    let small = pool.root().join("small");
    std::fs::write(&small, b"so small that it lies among metadata").unwrap();
    let image = pool.freeze(&small, Method::Auto);
    let (bytes, direct) = pool.read_as_proxy(&*image);
    assert_eq!((bytes, direct), (std::fs::read(&small).unwrap(), 0));
}

#[test]
fn a_mirror_that_missed_a_write_is_not_read() {
    let Some(pool) = Pool::new("btrfs::a_mirror_that_missed_a_write_is_not_read", "raid1", 2, 0) else {
        return;
    };
    let (volume, frozen) = pool.volume(pool.root(), 12);
    let image = pool.freeze(&volume, Method::Auto);
    let disk = |image: &dyn FrozenImage| {
        let mut names: Vec<String> = places(image)
            .iter()
            .map(|(_, place, _)| image.graph().store(place.store).identity.to_string())
            .collect();
        names.dedup();
        names
    };
    let before = disk(&*image);
    assert_eq!(before.len(), 1, "{before:?}");
    let used = usize::from(before[0] == "id:lun1");
    let (_, place, _) = places(&*image)[0];
    drop(image);
    // As if it had been away for a while: it holds what was there before, and btrfs finds out.
    let lun = File::options().write(true).open(pool.lun(used)).unwrap();
    lun.write_all_at(&pattern(64 << 10, 1234), place.offset).unwrap();
    lun.sync_all().unwrap();
    run("umount", &[path(pool.root())]).unwrap();
    pool.mount(&[]);
    // Exits with an error when it has corrected some.
    let _ = run("btrfs", &["scrub", "start", "-B", path(pool.root())]);
    let image = pool.freeze(&volume, Method::Auto);
    assert_ne!(disk(&*image), before);
    let (bytes, direct) = pool.read_as_proxy(&*image);
    assert!(bytes == frozen);
    assert!(direct > 0);
}
