//! What is read straight from the LUN is the frozen image, while the volume is being written to.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use volmap::freeze::Method;
use volmap::frozen::{Attestation, FrozenError, Stability};
use volmap::map::Content;
use volmap::sys::inode_flags;

use crate::rig::{Rig, fragmented_file, pattern, read_all, whole_status};

#[test]
fn direct_reads_of_a_clone_equal_the_frozen_bytes_under_live_overwrites() {
    let Some(rig) = Rig::xfs("direct_reads_of_a_clone_equal_the_frozen_bytes_under_live_overwrites") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    let frozen = fragmented_file(&volume);
    // Dirty pages in place: FIEMAP does not show them.
    let mut frozen = frozen;
    let dirty = pattern(64 << 10, 99);
    let live = File::options().write(true).open(&volume).unwrap();
    live.write_all_at(&dirty, 1024 * 4096).unwrap();
    frozen[1024 * 4096..1024 * 4096 + dirty.len()].copy_from_slice(&dirty);

    let image = rig.freeze(&volume, Method::Auto).unwrap();
    let description = image.description();
    assert_eq!(
        (description.method, description.stability, description.attestation),
        ("reflink", Stability::Pinned, Attestation::Witnessed)
    );
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u64.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let offset = round * 7919 * 4096 % (8 << 20);
                live.write_all_at(&pattern(64 << 10, round), offset).unwrap();
                if round % 16 == 0 {
                    live.sync_all().unwrap();
                }
            }
        });
        for _ in 0..4 {
            let (bytes, direct) = rig.read_as_proxy(&*image);
            let right = bytes == frozen;
            if !right {
                done.store(true, Ordering::Relaxed);
            }
            assert!(right, "what was read from the LUN is not what was frozen");
            assert!(direct > 3 << 20, "only {direct} bytes were direct");
            assert_eq!(read_all(&*image).len(), frozen.len());
            assert!(read_all(&*image) == frozen);
        }
        done.store(true, Ordering::Relaxed);
    });

    let clone = |()| fs::read_dir(&rig.mount).unwrap().count();
    assert_eq!(clone(()), 2);
    image.thaw();
    assert_eq!(clone(()), 1, "the clone goes with the frozen image");
    assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
}

#[test]
fn unwritten_and_sparse_ranges_are_told_apart_and_stamped() {
    let Some(rig) = Rig::xfs("unwritten_and_sparse_ranges_are_told_apart_and_stamped") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fragmented_file(&volume);
    // Not by a clone: a clone has holes where its source was preallocated.
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    let status = whole_status(&*image);
    let content_at = |offset| status.iter().find(|e| e.range.contains(offset)).unwrap().content;
    assert_eq!(content_at(7 << 20), Content::Zero);
    assert_eq!(content_at(3 << 20), Content::Hole);
    assert_eq!(content_at(1 << 20), Content::Hole);
    assert_eq!(content_at(257 << 12), Content::Data);
    assert!(status.iter().all(|e| e.generation.is_direct()));
    assert_eq!(status.last().unwrap().range.end(), image.size());
    let limited = image
        .status(volmap::range::ByteRange::new(0, image.size()).unwrap(), 3)
        .unwrap()
        .extents;
    assert_eq!(limited, status[..3]);
}

#[test]
fn direct_reads_of_a_quiesced_ext4_file_equal_its_bytes() {
    let Some(rig) = Rig::ext4("direct_reads_of_a_quiesced_ext4_file_equal_its_bytes") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    let frozen = fragmented_file(&volume);
    let image = rig.freeze(&volume, Method::Auto).unwrap();
    assert_eq!(image.description().method, "quiesce");
    let (bytes, direct) = rig.read_as_proxy(&*image);
    assert!(bytes == frozen && read_all(&*image) == frozen);
    assert!(direct > 3 << 20, "only {direct} bytes were direct");
}

#[test]
fn pages_that_were_dirty_at_the_freeze_are_on_the_disk_before_their_place_is_told() {
    let Some(rig) =
        Rig::xfs("pages_that_were_dirty_at_the_freeze_are_on_the_disk_before_their_place_is_told")
    else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(4 << 20, 1)).unwrap();
    File::open(&volume).unwrap().sync_all().unwrap();
    // Overwritten in place, which FIEMAP does not show, after the file became immutable, which flushes. (XFS lets an old
    // descriptor write to it.)
    let file = File::options().write(true).open(&volume).unwrap();
    inode_flags::set_immutable(&file, true).unwrap();
    file.write_all_at(&pattern(4 << 20, 2), 0).unwrap();
    drop(file);
    let image = rig.freeze(&volume, Method::Static).unwrap();
    let (bytes, direct) = rig.read_as_proxy(&*image);
    assert!(bytes == pattern(4 << 20, 2), "stale bytes at a published place");
    assert_eq!(direct, 4 << 20);
}

#[test]
fn inline_data_is_never_direct() {
    let test = "inline_data_is_never_direct";
    let Some(rig) = Rig::new(test, 128, &["mkfs.ext4", "-q", "-O", "inline_data", "-I", "256"]) else {
        return;
    };
    let volume = rig.mount.join("small");
    fs::write(&volume, b"so small that it lies in its inode").unwrap();
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    let status = whole_status(&*image);
    assert_eq!(status.len(), 1);
    assert_eq!((status[0].content, status[0].place), (Content::Data, None));
    assert!(!status[0].generation.is_direct());
    assert_eq!(read_all(&*image), fs::read(&volume).unwrap());
}
