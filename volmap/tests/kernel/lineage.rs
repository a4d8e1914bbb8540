//! What two clones of a file tell to have changed between them, whatever was done to the file: all that differs is in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use volmap::freeze::Method;
use volmap::frozen::{ChangedMap, FrozenImage, NoLineage};
use volmap::range::ByteRange;
use volmap::sys::inode_flags;

use crate::rig::{Rig, fragmented_file, path, pattern, read_all, run};

const BLOCK: u64 = 4096;
const SIZE: u64 = 8 << 20;

/// A small generator, so that a seed names what was done.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    /// Blocks within the volume: where, and how many.
    fn blocks(&mut self) -> (u64, u64) {
        let at = self.roll(SIZE / BLOCK - 64);
        (at * BLOCK, (1 + self.roll(63)) * BLOCK)
    }
}

fn xfs_io(file: &Path, commands: &[String]) {
    let mut arguments = Vec::new();
    for command in commands {
        arguments.extend(["-c", command.as_str()]);
    }
    arguments.push(path(file));
    run("xfs_io", &arguments).unwrap();
}

/// One change of a file that is in use, by any of the ways that there are.
fn change(volume: &Path, dice: &mut Dice) {
    let ((at, len), (other, _)) = (dice.blocks(), dice.blocks());
    let live = File::options().read(true).write(true).open(volume).unwrap();
    let bytes = usize::try_from(len).unwrap();
    match dice.roll(11) {
        0 => live.write_all_at(&pattern(bytes, dice.0), at).unwrap(),
        1 => live
            .write_all_at(&pattern(100, dice.0), at + dice.roll(4000))
            .unwrap(),
        2 => {
            // What is there already: nothing changes, and it lies elsewhere.
            let mut there = vec![0; bytes];
            let read = live.read_at(&mut there, at).unwrap();
            live.write_all_at(&there[..read], at).unwrap();
        }
        3 => live.write_all_at(&vec![0; bytes], at).unwrap(),
        4 => xfs_io(volume, &[format!("fpunch {at} {len}")]),
        5 => xfs_io(volume, &[format!("fzero {at} {len}")]),
        6 => xfs_io(volume, &[format!("falloc {at} {len}")]),
        7 => xfs_io(volume, &[format!("reflink {} {other} {at} {len}", path(volume))]),
        8 => {
            // Equal bytes in two places become one.
            let same = pattern(bytes, dice.0);
            live.write_all_at(&same, at).unwrap();
            live.write_all_at(&same, (at + (1 << 20)) % (4 << 20)).unwrap();
            let from = (at + (1 << 20)) % (4 << 20);
            run(
                "xfs_io",
                &[
                    "-c",
                    &format!("dedupe {} {from} {at} {len}", path(volume)),
                    path(volume),
                ],
            )
            .ok();
        }
        9 => live.set_len(SIZE - dice.roll(1 << 20)).unwrap(),
        _ => live.set_len(SIZE + dice.roll(1 << 20)).unwrap(),
    }
    if dice.roll(3) == 0 {
        live.sync_all().unwrap();
    }
}

/// Holds every piece to what it is told to be; gives how many bytes are the same.
fn assert_right(newer: &dyn FrozenImage, older: &dyn FrozenImage, map: &ChangedMap) -> u64 {
    let (then, now) = (read_all(older), read_all(newer));
    assert_eq!(map.size(), now.len() as u64);
    let mut same = 0;
    for (part, changed) in map.within(ByteRange::new(0, map.size()).unwrap()) {
        let span = usize::try_from(part.start()).unwrap()..usize::try_from(part.end()).unwrap();
        if !changed {
            assert!(
                then.get(span.clone()) == Some(&now[span]),
                "{part:?} is not the same"
            );
            same += part.len();
        }
    }
    same
}

fn clones_under_changes(rig: &Rig, rounds: u64) {
    let volume = rig.mount.join("disk.img");
    fragmented_file(&volume);
    let mut told = 0;
    for seed in 1..=rounds {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let one = rig.freeze(&volume, Method::Reflink).unwrap();
        for _ in 0..12 {
            change(&volume, &mut dice);
        }
        // Its places are free again when the second one is made.
        let between = rig.freeze(&volume, Method::Reflink).unwrap();
        for _ in 0..12 {
            change(&volume, &mut dice);
        }
        if dice.roll(2) == 0 {
            between.thaw();
            drop(between);
        }
        let two = rig.freeze(&volume, Method::Reflink).unwrap();
        // What comes later is not in it, or is told to have changed.
        for _ in 0..6 {
            change(&volume, &mut dice);
        }
        assert!(one.keep_as_parent());
        let map = two
            .changed_since(&*one)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        told += assert_right(&*two, &*one, &map);
        let itself = two.changed_since(&*two).unwrap();
        assert!(itself.changed_bytes() <= map.changed_bytes());
    }
    assert!(
        told > rounds * (1 << 20),
        "only {told} bytes of {rounds} rounds are the same"
    );
}

#[test]
fn whatever_differs_between_two_clones_on_xfs_is_told_to_have_changed() {
    let Some(rig) = Rig::xfs("whatever_differs_between_two_clones_on_xfs_is_told_to_have_changed") else {
        return;
    };
    clones_under_changes(&rig, 12);
}

#[test]
fn whatever_differs_between_two_clones_on_btrfs_is_told_to_have_changed() {
    const NAME: &str = "whatever_differs_between_two_clones_on_btrfs_is_told_to_have_changed";
    let Some(rig) = Rig::new(NAME, 320, &["mkfs.btrfs", "-q"]) else {
        return;
    };
    clones_under_changes(&rig, 8);
}

/// What clones share is moved for all of them: a balance costs a kept one nothing.
#[test]
fn clones_on_btrfs_are_compared_after_a_balance_too() {
    const NAME: &str = "clones_on_btrfs_are_compared_after_a_balance_too";
    let Some(rig) = Rig::new(NAME, 320, &["mkfs.btrfs", "-q"]) else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fragmented_file(&volume);
    let one = rig.freeze(&volume, Method::Reflink).unwrap();
    assert!(one.keep_as_parent());
    for seed in 1..=2 {
        run("btrfs", &["balance", "start", "-d", path(&rig.mount)]).unwrap();
        change(&volume, &mut Dice(seed));
        assert!(one.can_be_parent());
        let two = rig.freeze(&volume, Method::Reflink).unwrap();
        let map = two.changed_since(&*one).unwrap();
        assert!(assert_right(&*two, &*one, &map) > SIZE / 2);
    }
}

/// An old place that was given back may hold anything: it is told of two images only while both stand.
#[test]
fn an_image_that_does_not_stand_is_compared_with_no_other() {
    let Some(rig) = Rig::xfs("an_image_that_does_not_stand_is_compared_with_no_other") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fragmented_file(&volume);
    let freeze = || rig.freeze(&volume, Method::Reflink).unwrap();
    let (one, two, three) = (freeze(), freeze(), freeze());
    assert_eq!(two.changed_since(&*one).unwrap().changed_bytes(), 0);
    one.thaw();
    assert!(matches!(two.changed_since(&*one), Err(NoLineage::Older(_))));
    assert!(matches!(one.changed_since(&*two), Err(NoLineage::Newer(_))));
    assert!(!one.keep_as_parent());

    // Somebody who took the flag off for a moment may have moved what lies in it.
    let clone = std::fs::read_dir(&rig.mount).unwrap().flatten().find(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .contains(&two.description().uuid.to_string())
    });
    let clone = File::open(clone.unwrap().path()).unwrap();
    inode_flags::set_immutable(&clone, false).unwrap();
    inode_flags::set_immutable(&clone, true).unwrap();
    assert!(two.stands().is_ok());
    assert!(matches!(three.changed_since(&*two), Err(NoLineage::Older(_))));
    assert!(matches!(two.changed_since(&*three), Err(NoLineage::Newer(_))));

    let held = rig.freeze(&volume, Method::Quiesce).unwrap();
    assert_eq!(held.changed_since(&*three), Err(NoLineage::NotTold("quiesce")));
    assert!(!held.keep_as_parent());
}
