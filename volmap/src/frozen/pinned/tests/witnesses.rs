//! The order in which witnesses are asked, with a hold that does what the test says.

use std::sync::atomic::Ordering;

use super::world::{NEVER, image, status};
use crate::frozen::{FrozenError, FrozenImage};
use crate::map::Content;
use crate::range::ByteRange;
use crate::sys::page_cache;

#[test]
fn bytes_that_were_copied_while_the_content_was_lost_are_not_given_out() {
    let (image, world) = image();
    image.read_at(0, &mut [0; 16]).unwrap();
    // Good when the read begins, lost when the bytes have been copied.
    let asked = world.content_asked.load(Ordering::SeqCst);
    world.content_lost_from.store(asked + 1, Ordering::SeqCst);
    assert!(matches!(
        image.read_at(0, &mut [0; 16]),
        Err(FrozenError::Gone(_))
    ));
}

#[test]
fn whether_an_image_stands_is_asked_of_the_witness() {
    let (image, world) = image();
    let mut bytes = [0; 16];
    assert!(image.read_cached(0, &mut bytes).unwrap());
    assert_eq!(bytes, [7; 16]);
    image.stands().unwrap();
    let asked = world.content_asked.load(Ordering::SeqCst);
    world.content_lost_from.store(asked, Ordering::SeqCst);
    assert!(matches!(image.stands(), Err(FrozenError::Gone(_))));
}

#[test]
fn only_a_file_that_nobody_will_write_again_is_given_out() {
    let (image, world) = image();
    let range = ByteRange::new(0, 4096).unwrap();
    image.read_at(0, &mut [0; 4096]).unwrap();
    assert!(image.immutable_file(range).unwrap().is_none());
    world.for_ever.store(true, Ordering::SeqCst);
    // Before Linux 6.5 nobody can tell what is in the page cache, and everything is copied.
    if page_cache::is_cached(&world.file, 0, 4096).is_ok() {
        assert!(image.immutable_file(range).unwrap().is_some());
    }
}

#[test]
fn content_asks_no_witness_of_the_mapping() {
    let (image, world) = image();
    world.hold_slipped.store(true, Ordering::SeqCst);
    let all = ByteRange::new(0, 8192).unwrap();
    let contents = |limit| -> Vec<Content> {
        let extents = image.content(all, limit).unwrap();
        extents.iter().map(|e| e.content).collect()
    };
    assert_eq!(contents(10), [Content::Data, Content::Hole]);
    assert_eq!(contents(1), [Content::Data]);
    world.hold_slipped.store(false, Ordering::SeqCst);
    assert!(status(&image).unwrap().extents[0].generation.is_direct());
}

#[test]
fn lost_content_stays_lost_though_the_witness_comes_back() {
    let (image, world) = image();
    world.content_lost_from.store(0, Ordering::SeqCst);
    assert!(matches!(status(&image), Err(FrozenError::Gone(_))));
    world.content_lost_from.store(NEVER, Ordering::SeqCst);
    assert!(matches!(status(&image), Err(FrozenError::Gone(_))));
    assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
}

#[test]
fn every_status_asks_both_witnesses_anew() {
    let (image, world) = image();
    let before = world.content_asked.load(Ordering::SeqCst);
    let first = status(&image).unwrap().extents;
    assert!(world.content_asked.load(Ordering::SeqCst) > before);
    let contents: Vec<Content> = first.iter().map(|e| e.content).collect();
    assert_eq!(contents, [Content::Data, Content::Hole]);
    assert!(first.iter().all(|e| e.generation.is_direct()));

    world.hold_slipped.store(true, Ordering::SeqCst);
    let lost = status(&image).unwrap().extents;
    assert!(
        lost.iter()
            .all(|e| !e.generation.is_direct() && e.place.is_none())
    );
    world.hold_slipped.store(false, Ordering::SeqCst);
    assert_eq!(
        status(&image).unwrap().extents,
        lost,
        "a hold that slipped has slipped"
    );
    image.read_at(0, &mut [0; 16]).unwrap();
}

#[test]
fn a_thawed_image_is_gone_and_gives_back_what_it_held() {
    let (image, world) = image();
    image.thaw();
    assert_eq!(world.ended.load(Ordering::SeqCst), 1);
    assert!(matches!(status(&image), Err(FrozenError::Gone(_))));
    assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
}
