//! `restore`: the volume comes back, or nothing pretends that it did.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proxy_client::error::{ErrorKind, Result};
use proxy_client::job::restore::{RestoreOptions, Restored, restore};

use crate::fixture::{DAMAGED, Fixture, VOLUME, in_runtime, old_data, quiet};

fn run(image: &Path, output: &Path, force: bool) -> Result<Restored> {
    let options = RestoreOptions {
        force,
        ..RestoreOptions::to_path(image, output)
    };
    in_runtime(restore(&options, &mut quiet))
}

fn kind(result: Result<Restored>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn a_new_file_equals_the_volume_and_keeps_its_holes() {
    let fixture = Fixture::new(VOLUME);
    let target = fixture.path("disk.raw");
    let mut last = (0, 0);
    let options = RestoreOptions::to_path(fixture.image_path(), &target);
    let restored = in_runtime(restore(&options, &mut |done, size| {
        assert!(done > last.0);
        last = (done, size);
    }))
    .unwrap();
    let size = fixture.plain.len() as u64;
    assert_eq!(last, (size, size));
    assert_eq!(restored.end, fixture.end);
    assert!(restored.unreadable.error().is_none());
    assert!(std::fs::read(&target).unwrap() == fixture.plain);
    let blocks = std::fs::metadata(&target).unwrap().blocks() * 512;
    assert!(blocks < size / 2, "{blocks} bytes in blocks");
    assert_eq!(fixture.left_over(), [target]);
}

/// At every frame boundary, and inside every frame.
#[test]
fn a_cut_image_leaves_nothing_behind() {
    let fixture = Fixture::new(VOLUME);
    let target = fixture.path("disk.raw");
    let ends = fixture.frame_ends();
    let cuts = ends.iter().flat_map(|end| [*end - 1, *end, *end + 1]);
    for cut in cuts.chain([0, 1, fixture.image.len() - 1]) {
        let image = fixture.with_image(&fixture.image[..cut]);
        assert_eq!(kind(run(&image, &target, false)), ErrorKind::ImageBad, "{cut}");
        assert!(fixture.left_over().is_empty());
    }
}

#[test]
fn a_changed_image_leaves_nothing_behind() {
    let fixture = Fixture::new(VOLUME);
    let target = fixture.path("disk.raw");
    assert_eq!(kind(run(&fixture.changed(), &target, false)), ErrorKind::ImageBad);
    assert!(fixture.left_over().is_empty());
    let appended = [&fixture.image[..], b"x"].concat();
    let image = fixture.with_image(&appended);
    assert_eq!(kind(run(&image, &target, false)), ErrorKind::ImageBad);
    let twice = [&fixture.image[..], &fixture.image].concat();
    let image = fixture.with_image(&twice);
    assert_eq!(kind(run(&image, &target, false)), ErrorKind::ImageBad);
    assert!(fixture.left_over().is_empty());
}

#[test]
fn old_data_in_a_file_do_not_survive() {
    let fixture = Fixture::new(VOLUME);
    for length in [
        1,
        fixture.plain.len() - 1,
        fixture.plain.len(),
        fixture.plain.len() + 5000,
    ] {
        let target = fixture.path("disk.raw");
        old_data(&target, length);
        assert_eq!(
            kind(run(&fixture.image_path(), &target, false)),
            ErrorKind::TargetNotEmpty
        );
        assert!(std::fs::read(&target).unwrap() == vec![0xa5; length]);
        let inode = std::fs::metadata(&target).unwrap().ino();
        run(&fixture.image_path(), &target, true).unwrap();
        assert!(std::fs::read(&target).unwrap() == fixture.plain);
        assert_eq!(std::fs::metadata(&target).unwrap().ino(), inode);
    }
}

#[test]
fn a_cut_image_does_not_cost_the_old_file() {
    let fixture = Fixture::new(VOLUME);
    let target = fixture.path("disk.raw");
    old_data(&target, 5000);
    let image = fixture.with_image(&fixture.image[..fixture.image.len() - 100]);
    assert_eq!(kind(run(&image, &target, true)), ErrorKind::ImageBad);
    assert!(std::fs::read(&target).unwrap() == vec![0xa5; 5000]);
}

#[test]
fn a_failed_restore_in_place_says_that_the_target_is_incomplete() {
    let fixture = Fixture::new(VOLUME);
    let target = fixture.path("disk.raw");
    old_data(&target, 5000);
    let error = run(&fixture.changed(), &target, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageBad);
    assert!(error.message().contains("incomplete"), "{error}");
    assert!(error.message().contains(target.to_str().unwrap()), "{error}");
}

#[test]
fn what_is_used_or_the_image_itself_is_refused_even_with_force() {
    let fixture = Fixture::new(VOLUME);
    let image = fixture.image_path();
    assert_eq!(kind(run(&image, &image, true)), ErrorKind::OutputIsSource);
    assert!(std::fs::read(&image).unwrap() == fixture.image);
    let lun = fixture.path("lun");
    old_data(&lun, 5000);
    let reader = std::fs::File::open(&lun).unwrap();
    reader.lock_shared().unwrap();
    assert_eq!(kind(run(&image, &lun, true)), ErrorKind::TargetBusy);
    reader.unlock().unwrap();
    // Open alone is enough, where the file system knows leases.
    assert_eq!(kind(run(&image, &lun, true)), ErrorKind::TargetBusy);
    assert!(std::fs::read(&lun).unwrap() == vec![0xa5; 5000]);
}

#[test]
fn unreadable_ranges_are_zero_and_reported() {
    let fixture = Fixture::new(DAMAGED);
    let target = fixture.path("disk.raw");
    let restored = run(&fixture.image_path(), &target, false).unwrap();
    assert!(std::fs::read(&target).unwrap() == fixture.plain);
    let error = restored.unreadable.error().unwrap();
    assert_eq!(error.kind().exit_code(), 3);
    assert_eq!(error.context().range.unwrap().start(), 100_000);
}

#[test]
fn a_missing_image_is_no_bad_image() {
    let fixture = Fixture::new(VOLUME);
    let result = run(&fixture.path("none"), &fixture.path("disk.raw"), false);
    assert_eq!(kind(result), ErrorKind::Io);
}
