//! What nobody has of a file system, by its own records in a frozen copy of its device: what is told to be free may hold anything.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use volmap::frozen::{FreeSpace, NoFreeSpace};
use volmap::range::ByteRange;
use volmap::sys::{DeviceNumber, detached_mount};

use crate::rig::{Rig, pattern, run};

const MIB: usize = 1 << 20;

/// Files that come, grow and go; some are gaps, some are only preallocated.
fn churn(mount: &Path, round: u64) {
    for number in 0..30 {
        let path = mount.join(format!("{}", number % 20));
        if number % 3 == 1 {
            let _ = fs::remove_file(&path);
            continue;
        }
        let len = MIB / 16 * usize::try_from((number * 7 + round * 5) % 23 + 1).unwrap();
        fs::write(&path, pattern(len, number + round)).unwrap();
        if number % 5 == 0 {
            run(
                "fallocate",
                &["--offset", "8M", "--length", "700K", path.to_str().unwrap()],
            )
            .unwrap();
        }
        if number % 4 == 0 {
            run("sync", &[path.to_str().unwrap()]).unwrap();
        }
    }
}

fn files(mount: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(mount).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn nobody_misses_what_is_told_to_be_free(mut rig: Rig, check: &[&str], mount: &str) {
    for round in 0..2 {
        churn(&rig.mount, round);
    }
    let before = files(&rig.mount);
    let copy = rig.lun.with_file_name("copy");
    let mounted = rig.mount.to_str().unwrap().to_owned();
    run("fsfreeze", &["--freeze", &mounted]).unwrap();
    let copied = fs::copy(&rig.lun, &copy);
    run("fsfreeze", &["--unfreeze", &mounted]).unwrap();
    let size = copied.unwrap();
    let counted = nix::sys::statvfs::statvfs(&rig.mount).unwrap();
    let free_then = counted.blocks_free() * counted.fragment_size();
    // The live file system goes on: what it could tell by now is of another instant.
    churn(&rig.mount, 9);

    let device = rig.attach(&copy, &["--read-only"]);
    let opened = File::open(&device).unwrap();
    let number = DeviceNumber::from_stat(opened.metadata().unwrap().rdev());
    let free = FreeSpace::on_device(&opened, number, size).unwrap();
    // What the kernel counts leaves out what it keeps for itself.
    assert!(free.bytes() > free_then / 2, "{} of {free_then}", free.bytes());
    drop(opened);
    rig.detach(&device);

    let garbage = pattern(MIB, 0xa5);
    let written = File::options().write(true).open(&copy).unwrap();
    for (part, is_free) in free.within(ByteRange::new(0, size).unwrap()) {
        let mut at = part.start();
        while is_free && at < part.end() {
            let len = garbage.len().min(usize::try_from(part.end() - at).unwrap());
            written.write_all_at(&garbage[..len], at).unwrap();
            at += len as u64;
        }
    }
    written.sync_all().unwrap();
    drop(written);
    let (program, arguments) = check.split_first().unwrap();
    run(program, &[arguments, &[copy.to_str().unwrap()]].concat()).unwrap();
    let looked_at = rig.mount.with_file_name("copy.mount");
    fs::create_dir(&looked_at).unwrap();
    let target = looked_at.to_str().unwrap();
    let device = rig.attach(&copy, &[]);
    run("mount", &["-o", mount, device.to_str().unwrap(), target]).unwrap();
    let after = files(&looked_at);
    run("umount", &[target]).unwrap();
    assert!(after == before, "{:?} {:?}", after.keys(), before.keys());
}

#[test]
fn nobody_misses_what_ext4_tells_to_be_free() {
    if let Some(rig) = Rig::ext4("nobody_misses_what_ext4_tells_to_be_free") {
        nobody_misses_what_is_told_to_be_free(rig, &["e2fsck", "-fn"], "ro,noload");
    }
}

#[test]
fn nobody_misses_what_xfs_tells_to_be_free() {
    if let Some(rig) = Rig::xfs("nobody_misses_what_xfs_tells_to_be_free") {
        nobody_misses_what_is_told_to_be_free(rig, &["true"], "nouuid");
    }
}

/// What is told of a copy of the LUN.
fn told_of(rig: &mut Rig, copy: &Path) -> Result<FreeSpace, NoFreeSpace> {
    let device = rig.attach(copy, &["--read-only"]);
    let opened = File::open(&device).unwrap();
    let number = DeviceNumber::from_stat(opened.metadata().unwrap().rdev());
    FreeSpace::on_device(&opened, number, fs::metadata(copy).unwrap().len())
}

/// A copy of the LUN, made while its file system is mounted: frozen, or not.
fn copy_of(rig: &Rig, name: &str, frozen: bool) -> PathBuf {
    let copy = rig.lun.with_file_name(name);
    let mounted = rig.mount.to_str().unwrap();
    if frozen {
        run("fsfreeze", &["--freeze", mounted]).unwrap();
    }
    let copied = fs::copy(&rig.lun, &copy);
    if frozen {
        run("fsfreeze", &["--unfreeze", mounted]).unwrap();
    }
    copied.unwrap();
    copy
}

#[test]
fn ext4_whose_log_is_not_empty_tells_nothing() {
    let Some(mut rig) = Rig::ext4("ext4_whose_log_is_not_empty_tells_nothing") else {
        return;
    };
    // Committed, and in the log only: the bitmaps are of before.
    for number in 0..8 {
        let path = rig.mount.join(format!("{number}"));
        fs::write(&path, pattern(MIB, number)).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    }
    let torn = copy_of(&rig, "torn", false);
    assert!(matches!(told_of(&mut rig, &torn), Err(NoFreeSpace::NotFrozen)));
    let frozen = copy_of(&rig, "frozen", true);
    assert!(told_of(&mut rig, &frozen).unwrap().bytes() > 0);
}

#[test]
fn ext4_in_which_an_error_was_found_tells_nothing() {
    let Some(mut rig) = Rig::ext4("ext4_in_which_an_error_was_found_tells_nothing") else {
        return;
    };
    let copy = copy_of(&rig, "copy", true);
    run(
        "debugfs",
        &["-w", "-R", "set_super_value state 3", copy.to_str().unwrap()],
    )
    .unwrap();
    assert!(matches!(
        told_of(&mut rig, &copy),
        Err(NoFreeSpace::NotInOrder(_))
    ));
}

#[test]
fn ext4_without_a_journal_tells_nothing() {
    let test = "ext4_without_a_journal_tells_nothing";
    let Some(mut rig) = Rig::new(test, 128, &["mkfs.ext4", "-q", "-O", "^has_journal"]) else {
        return;
    };
    let copy = copy_of(&rig, "copy", true);
    assert!(matches!(
        told_of(&mut rig, &copy),
        Err(NoFreeSpace::NotInOrder(_))
    ));
}

#[test]
fn what_ext4_does_about_an_error_is_the_word_of_who_mounts_it() {
    let Some(mut rig) = Rig::ext4("what_ext4_does_about_an_error_is_the_word_of_who_mounts_it") else {
        return;
    };
    let copy = copy_of(&rig, "copy", true);
    // Not `panic`: this machine is to stand if it is not.
    run("tune2fs", &["-e", "remount-ro", copy.to_str().unwrap()]).unwrap();
    let device = rig.attach(&copy, &["--read-only"]);
    let opened = File::open(&device).unwrap();
    let told = Path::new("/proc/fs/ext4").join(device.file_name().unwrap());
    let options = [(c"norecovery", None), (c"errors", Some(c"continue"))];
    let root = detached_mount::read_only(&opened, c"ext4", &options).unwrap();
    let in_force = fs::read_to_string(told.join("options")).unwrap();
    drop(root);
    assert!(
        in_force.lines().any(|line| line == "errors=continue"),
        "{in_force}"
    );
}
