//! What is read through the host does not fill its page cache.

use std::fs::{self, File};

use volmap::freeze::Method;
use volmap::frozen::FrozenImage;
use volmap::sys::page_cache;

use crate::rig::{Rig, pattern};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 96 * MIB;

/// As a server reads for a client: what is there at once, and else with patience.
fn read(image: &dyn FrozenImage, range: std::ops::Range<u64>) {
    let mut buf = vec![0; 256 << 10];
    for offset in range.step_by(buf.len()) {
        if !image.read_cached(offset, &mut buf).unwrap() {
            image.read_at(offset, &mut buf).unwrap();
        }
    }
}

/// How many MiB are in the page cache as a whole.
fn cached(file: &File, range: std::ops::Range<u64>) -> usize {
    let whole = |&offset: &u64| page_cache::is_cached(file, offset, MIB).unwrap();
    range.step_by(1 << 20).filter(whole).count()
}

/// Takes a range out of the page cache. What was just written may be in use for a moment.
fn drop_all(file: &File, range: std::ops::Range<u64>) {
    for _ in 0..100 {
        page_cache::drop_clean(file, range.start, range.end - range.start).unwrap();
        if cached(file, range.clone()) == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{range:?} stays in the page cache");
}

#[test]
fn what_was_read_is_given_back_once_behind_the_reader() {
    let Some(rig) = Rig::xfs("what_was_read_is_given_back_once_behind_the_reader") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(usize::try_from(SIZE).unwrap(), 1)).unwrap();
    let file = File::open(&volume).unwrap();
    file.sync_all().unwrap();
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    drop_all(&file, 0..SIZE);

    read(&*image, 0..SIZE);
    let left = cached(&file, 0..SIZE);
    // 16 MiB are kept for requests to come, and the kernel leaves what somebody uses just then.
    assert!(
        (1..=32).contains(&left),
        "{left} MiB are left of what was read once"
    );
    assert!(cached(&file, 0..16 * MIB) < 16);

    read(&*image, 0..16 * MIB);
    read(&*image, 16 * MIB..SIZE);
    assert_eq!(cached(&file, 0..16 * MIB), 16, "what is read again stays");
    image.thaw();
}

#[test]
fn what_was_in_the_page_cache_before_stays_there() {
    let Some(rig) = Rig::xfs("what_was_in_the_page_cache_before_stays_there") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(usize::try_from(SIZE).unwrap(), 1)).unwrap();
    let file = File::open(&volume).unwrap();
    file.sync_all().unwrap();
    // Here and there, and at the end.
    let hot = [(8, 24), (40, 44), (88, 96)];
    let mut at = 0;
    for (start, end) in hot {
        drop_all(&file, at..start * MIB);
        at = end * MIB;
    }
    let image = rig.freeze(&volume, Method::Quiesce).unwrap();
    read(&*image, 0..SIZE);
    for (start, end) in hot {
        let left = cached(&file, start * MIB..end * MIB);
        assert_eq!(left as u64, end - start, "of {start} to {end} MiB");
    }
    assert!(cached(&file, 0..SIZE) <= 28 + 32);
    image.thaw();
}
