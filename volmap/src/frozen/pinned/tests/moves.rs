//! What is moved below a pinned image while it is read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::world::{DATA, World, image, status};
use crate::frozen::pinned::PinnedImage;
use crate::frozen::{FrozenError, FrozenImage, StatusExtent};
use crate::generation::Generation;
use crate::limits::REMAP_PATIENCE;
use crate::map::Content;
use crate::range::ByteRange;

/// Where the data lies, as it is told now.
fn told(image: &PinnedImage) -> (Generation, Option<String>, Option<u64>) {
    let status = status(image).unwrap();
    let StatusExtent {
        generation, place, ..
    } = status.extents[0];
    assert_eq!(place.is_some(), generation.is_direct());
    let disk = place.map(|place| status.graph.resolve(place, DATA).disk().unwrap());
    let name = disk.map(|disk| status.graph.store(disk.store).label.clone());
    (generation, name, disk.map(|disk| disk.offset))
}

/// The same once it is told at all. Whatever is told before is nothing.
fn settled(image: &PinnedImage) -> (Generation, String, u64) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let (generation, Some(name), Some(offset)) = told(image) {
            return (generation, name, offset);
        }
        assert!(Instant::now() < until, "there is no other map");
        thread::sleep(Duration::from_millis(5));
    }
}

fn surveys(world: &World) -> usize {
    world.surveys.load(Ordering::SeqCst)
}

#[test]
fn what_was_moved_below_is_told_of_where_it_lies_now_and_never_where_it_lay() {
    let (image, world) = image();
    let mut seen = vec![settled(&image)];
    assert_eq!((seen[0].1.as_str(), seen[0].2), ("lun0", 0));
    for disk in 1..4 {
        world.move_to(disk);
        assert_eq!(
            told(&image),
            (Generation::NEVER_DIRECT, None, None),
            "whoever finds it out is not told of the old place, and not held up"
        );
        let (generation, name, offset) = settled(&image);
        assert_eq!((name, offset), (format!("lun{disk}"), disk * DATA));
        assert!(seen.iter().all(|(then, ..)| *then != generation));
        seen.push((generation, String::new(), 0));
    }
    assert!(image.answers_at_once());
    assert_eq!(image.graph().stores()[0].label, "lun3");
    image.read_at(0, &mut [0; 16]).unwrap();
}

#[test]
fn what_lies_where_it_lay_has_another_generation_all_the_same() {
    let (image, world) = image();
    let (before, ..) = settled(&image);
    world.move_to(1);
    world.move_to(0);
    let (after, name, offset) = settled(&image);
    assert_eq!((name.as_str(), offset), ("lun0", 0));
    assert_ne!(before, after);
}

#[test]
fn a_map_that_something_happened_to_while_it_was_made_is_never_told() {
    let (image, world) = image();
    settled(&image);
    let mover = Arc::clone(&world);
    *world.during.lock().unwrap() = Some(Box::new(move || mover.move_to(2)));
    world.move_to(1);
    let (_, name, _) = settled(&image);
    assert_eq!(name, "lun2");
    assert_eq!(surveys(&world), 3);
}

#[test]
fn while_there_is_no_way_to_a_disk_nothing_is_told_and_seldom_looked() {
    let (image, world) = image();
    settled(&image);
    world.is_opaque.store(true, Ordering::SeqCst);
    world.move_to(1);
    let until = Instant::now() + Duration::from_millis(900);
    let mut asked = 0;
    while Instant::now() < until {
        assert_eq!(told(&image).1, None);
        asked += 1;
        thread::sleep(Duration::from_millis(1));
    }
    let looked = surveys(&world) - 1;
    assert!(
        (1..10).contains(&looked) && asked > 100,
        "{looked} looks for {asked} questions"
    );
    world.is_opaque.store(false, Ordering::SeqCst);
    world.happen();
    assert_eq!(settled(&image).1, "lun1");
}

#[test]
fn what_a_zero_is_was_settled_by_the_freeze() {
    let (image, world) = image();
    let contents = |image: &PinnedImage| -> Vec<Content> {
        status(image).unwrap().extents.iter().map(|e| e.content).collect()
    };
    assert_eq!(contents(&image), [Content::Data, Content::Hole]);
    world.all_data.store(true, Ordering::SeqCst);
    world.move_to(1);
    let (generation, ..) = settled(&image);
    assert_eq!(contents(&image), [Content::Data, Content::Hole]);
    assert_eq!(status(&image).unwrap().extents[1].generation, generation);
}

#[test]
fn without_a_hold_no_map_is_made() {
    let (image, world) = image();
    world.hold_slipped.store(true, Ordering::SeqCst);
    world.move_to(1);
    assert_eq!(told(&image).1, None);
    let until = Instant::now() + Duration::from_secs(20);
    while !image.answers_at_once() {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(5));
    }
    world.hold_slipped.store(false, Ordering::SeqCst);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(told(&image).1, None);
    assert_eq!(surveys(&world), 1);
    image.read_at(0, &mut [0; 16]).unwrap();
}

#[test]
fn a_look_that_hangs_holds_nobody_up_for_long() {
    let (image, world) = image();
    settled(&image);
    let (go_on, wait) = mpsc::channel::<()>();
    *world.during.lock().unwrap() = Some(Box::new(move || assert!(wait.recv().is_err())));
    world.move_to(1);
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(told(&image).1, None);
        image.read_at(0, &mut [0; 16]).unwrap();
    }
    assert!(begun.elapsed() < REMAP_PATIENCE * 2, "{:?}", begun.elapsed());
    drop(go_on);
    assert_eq!(settled(&image).1, "lun1");
}

#[test]
fn a_thaw_waits_for_no_look() {
    let (image, world) = image();
    settled(&image);
    let (go_on, wait) = mpsc::channel::<()>();
    *world.during.lock().unwrap() = Some(Box::new(move || assert!(wait.recv().is_err())));
    world.move_to(1);
    assert_eq!(told(&image).1, None);
    drop(image);
    assert!(world.ended.load(Ordering::SeqCst) > 0);
    drop(go_on);
}

#[test]
fn content_that_is_lost_while_a_map_is_made_is_lost() {
    let (image, world) = image();
    settled(&image);
    let taker = Arc::clone(&world);
    *world.during.lock().unwrap() = Some(Box::new(move || {
        taker.content_lost_from.store(0, Ordering::SeqCst);
    }));
    world.move_to(1);
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match image.status(ByteRange::new(0, DATA).unwrap(), 1) {
            Err(FrozenError::Gone(_)) => return,
            other => assert!(other.unwrap().extents[0].place.is_none()),
        }
        assert!(Instant::now() < until);
    }
}
