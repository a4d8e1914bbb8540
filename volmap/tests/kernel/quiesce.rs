//! Files held free of writers.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use volmap::freeze::{FreezeError, Method};
use volmap::frozen::{Stability, Strength};
use volmap::sys::inode_flags;

use crate::rig::{Rig, path, pattern, run, whole_status};

#[test]
fn a_file_with_a_writer_is_refused_and_left_as_it_was() {
    let Some(rig) = Rig::ext4("a_file_with_a_writer_is_refused_and_left_as_it_was") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    let writer = File::options().write(true).open(&volume).unwrap();
    for method in [Method::Auto, Method::Quiesce, Method::Static] {
        let refused = rig.freeze(&volume, method).map(drop);
        assert!(
            matches!(refused, Err(FreezeError::WriterPresent { .. })),
            "{refused:?}"
        );
    }
    let file = File::open(&volume).unwrap();
    assert!(!inode_flags::get(&file).unwrap().is_immutable());

    drop(writer);
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    assert_eq!(image.description().strength, Strength::Quiesced);
    assert!(inode_flags::get(&file).unwrap().is_immutable());
    let late = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&volume);
    assert_eq!(
        late.map(drop).map_err(|e| e.kind()),
        Err(io::ErrorKind::PermissionDenied)
    );
    image.thaw();
    assert!(!inode_flags::get(&file).unwrap().is_immutable());
    File::options().write(true).open(&volume).unwrap();
}

#[test]
fn a_flag_that_was_there_before_stays_and_static_needs_it() {
    let Some(rig) = Rig::ext4("a_flag_that_was_there_before_stays_and_static_needs_it") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    let image = rig.freeze(&volume, Method::Static).unwrap();
    assert_eq!(image.description().stability, Stability::Opaque);
    assert!(!image.graph().reaches_disk());
    assert!(
        whole_status(&*image)
            .iter()
            .all(|e| !e.generation.is_direct() && e.place.is_none())
    );
    drop(image);

    let file = File::open(&volume).unwrap();
    inode_flags::set_immutable(&file, true).unwrap();
    for method in [Method::Static, Method::Quiesce] {
        let image = rig.freeze(&volume, method).unwrap();
        assert_eq!(image.description().stability, Stability::Pinned);
        assert!(rig.read_as_proxy(&*image).1 == 1 << 20);
        drop(image);
        assert!(inode_flags::get(&file).unwrap().is_immutable());
    }
    inode_flags::set_immutable(&file, false).unwrap();
}

#[test]
fn ext4_with_journalled_data_is_never_direct() {
    let Some(rig) = Rig::ext4("ext4_with_journalled_data_is_never_direct") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    run("umount", &[path(&rig.mount)]).unwrap();
    run(
        "mount",
        &["-o", "data=journal", path(&rig.device), path(&rig.mount)],
    )
    .unwrap();
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    assert_eq!(image.description().stability, Stability::Opaque);
}

#[test]
fn the_flag_of_a_file_goes_with_the_last_of_its_frozen_images() {
    let Some(rig) = Rig::ext4("the_flag_of_a_file_goes_with_the_last_of_its_frozen_images") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    let file = File::open(&volume).unwrap();
    let is_immutable = || inode_flags::get(&file).unwrap().is_immutable();
    for first_goes_first in [true, false] {
        let mut images: Vec<_> = (0..3)
            .map(|_| rig.freeze(&volume, Method::Quiesce).unwrap())
            .collect();
        if !first_goes_first {
            images.reverse();
        }
        while let Some(image) = images.pop() {
            image.thaw();
            drop(image);
            assert_eq!(is_immutable(), !images.is_empty());
            for left in &images {
                assert!(
                    whole_status(&**left)
                        .iter()
                        .all(|e| e.generation.is_direct() && e.place.is_some())
                );
                assert!(rig.read_as_proxy(&**left).1 == 1 << 20);
            }
        }
    }
    // What somebody else set stays, however many had use of it.
    inode_flags::set_immutable(&file, true).unwrap();
    let images: Vec<_> = (0..2)
        .map(|_| rig.freeze(&volume, Method::Quiesce).unwrap())
        .collect();
    drop(images);
    assert!(is_immutable());
    inode_flags::set_immutable(&file, false).unwrap();
}
