//! What others do to a clone, and how it is noticed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use volmap::freeze::{Method, leftover_clones};
use volmap::frozen::{FrozenError, FrozenImage, Stability};
use volmap::range::ByteRange;
use volmap::sys::{fiemap, inode_flags};

use crate::rig::{Rig, path, pattern, read_all, run, whole_status};

/// A frozen image of a file of 1 MiB, and its clone.
fn frozen(rig: &Rig) -> (Arc<dyn FrozenImage>, PathBuf) {
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    fs::write(rig.mount.join("twin"), pattern(1 << 20, 1)).unwrap();
    let image = rig.freeze(&volume, Method::Reflink).unwrap();
    let is_clone = |p: &PathBuf| path(p).ends_with(".frozen");
    let mut entries = fs::read_dir(&rig.mount).unwrap().map(|e| e.unwrap().path());
    let clone = entries.find(is_clone).unwrap();
    (image, clone)
}

fn first(image: &dyn FrozenImage) -> Result<bool, FrozenError> {
    let status = image.status(ByteRange::new(0, 4096).unwrap(), 1)?;
    Ok(status.extents[0].generation.is_direct())
}

#[test]
fn deduplication_into_the_clone_is_refused() {
    let Some(rig) = Rig::xfs("deduplication_into_the_clone_is_refused") else {
        return;
    };
    let (image, clone) = frozen(&rig);
    let before = whole_status(&*image);
    let places = || -> Vec<u64> {
        let extents = fiemap::extents(&File::open(&clone).unwrap()).unwrap();
        extents.iter().map(|e| e.physical).collect()
    };
    let placed = places();
    let dedupe = format!("dedupe {} 0 0 1048576", path(&rig.mount.join("twin")));
    let said = run("xfs_io", &["-r", "-c", &dedupe, path(&clone)]);
    // xfs_io has no exit code for it; the map is what counts, also that of the file system.
    assert_eq!(places(), placed, "{said:?}");
    assert_eq!(whole_status(&*image), before, "{said:?}");
    assert!(rig.read_as_proxy(&*image).0 == pattern(1 << 20, 1));

    // Without the flag the same call moves the extents, though the lease stands: this is why the flag is a witness.
    let file = File::open(&clone).unwrap();
    inode_flags::set_immutable(&file, false).unwrap();
    run("xfs_io", &["-r", "-c", &dedupe, path(&clone)]).unwrap();
    assert_ne!(places(), placed);
    assert!(!first(&*image).unwrap());
    assert!(read_all(&*image) == pattern(1 << 20, 1));
}

#[test]
fn a_flag_taken_away_and_set_again_ends_direct_reads_for_good() {
    let Some(rig) = Rig::xfs("a_flag_taken_away_and_set_again_ends_direct_reads_for_good") else {
        return;
    };
    let (image, clone) = frozen(&rig);
    assert!(first(&*image).unwrap());
    let file = File::open(&clone).unwrap();
    inode_flags::set_immutable(&file, false).unwrap();
    inode_flags::set_immutable(&file, true).unwrap();
    assert!(!first(&*image).unwrap());
    let status = whole_status(&*image);
    assert!(status.iter().all(|e| e.place.is_none()));
    assert!(read_all(&*image) == pattern(1 << 20, 1));
}

#[test]
fn a_broken_lease_loses_the_frozen_image_for_good() {
    let Some(rig) = Rig::xfs("a_broken_lease_loses_the_frozen_image_for_good") else {
        return;
    };
    let (image, clone) = frozen(&rig);
    inode_flags::set_immutable(&File::open(&clone).unwrap(), false).unwrap();
    let mut writer = OpenOptions::new();
    writer.write(true).custom_flags(libc::O_NONBLOCK);
    assert!(
        writer.open(&clone).is_err(),
        "the lease keeps the writer out first"
    );
    for _ in 0..2 {
        assert!(matches!(
            image.read_at(0, &mut [0; 512]),
            Err(FrozenError::Gone(_))
        ));
        assert!(matches!(first(&*image), Err(FrozenError::Gone(_))));
    }
    // Pages of a clone are sent by reference, and may still be on their way: whoever wants to write to it waits for as long as
    // the kernel has him wait.
    assert!(writer.open(&clone).is_err());
    image.thaw();
    assert!(matches!(first(&*image), Err(FrozenError::Gone(_))));
    assert!(!clone.exists());
}

#[test]
fn another_backing_file_under_the_loop_device_ends_direct_reads() {
    let Some(rig) = Rig::xfs("another_backing_file_under_the_loop_device_ends_direct_reads") else {
        return;
    };
    let (image, _) = frozen(&rig);
    assert!(first(&*image).unwrap());
    // The least that can be done to a device in use: its size limit.
    run("losetup", &["--set-capacity", path(&rig.device)]).unwrap();
    assert!(first(&*image).unwrap(), "nothing changed yet");
    let grown = File::options().write(true).open(&rig.lun).unwrap();
    grown
        .set_len(grown.metadata().unwrap().len() + (1 << 20))
        .unwrap();
    run("losetup", &["--set-capacity", path(&rig.device)]).unwrap();
    assert!(!first(&*image).unwrap());
}

#[test]
fn a_clone_whose_agent_died_is_found() {
    let Some(rig) = Rig::xfs("a_clone_whose_agent_died_is_found") else {
        return;
    };
    let (image, clone) = frozen(&rig);
    assert_eq!(leftover_clones(&rig.mount).unwrap(), Vec::<PathBuf>::new());
    // As a killed agent leaves it: lease gone, file there.
    let left = PathBuf::from(path(&clone).replace("disk.img", "older.img"));
    fs::write(&left, b"").unwrap();
    assert_eq!(leftover_clones(&rig.mount).unwrap(), [left]);
    drop(image);
    assert!(!clone.exists(), "dropping a frozen image thaws it");
}

#[test]
fn a_freeze_that_runs_out_of_descriptors_leaves_nothing_behind() {
    let Some(rig) = Rig::xfs("a_freeze_that_runs_out_of_descriptors_leaves_nothing_behind") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    let used = fs::read_dir("/proc/self/fd").unwrap().count();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for spare in 0..64 {
        setrlimit(Resource::RLIMIT_NOFILE, used as u64 + spare, hard).unwrap();
        let image = rig.freeze(&volume, Method::Reflink);
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        if let Ok(image) = image
            && image.description().stability == Stability::Pinned
        {
            assert!(spare > 1, "no freeze failed with its clone made");
            return;
        }
        assert_eq!(fs::read_dir(&rig.mount).unwrap().count(), 1, "{spare} to spare");
    }
    panic!("no freeze came to its end");
}
