//! What every answer is sampled by, and what is the end of places or of the content.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::model::{CHUNK, CHUNK_LEN, World, frozen_byte};
use super::schedule::{Chooser, Nobody};
use crate::frozen::lvm_snapshot::image::{LvmSnapshotImage, Patience};
use crate::frozen::{FrozenError, FrozenImage, NoFreeSpace, StatusExtent, Strength};
use crate::limits::REMAP_PAUSE;
use crate::range::ByteRange;

const CHUNKS: u64 = 16;

fn world() -> (World, LvmSnapshotImage) {
    let world = World::new(CHUNKS, 12, Box::new(Nobody));
    let image = world.image(patience(0));
    (world, image)
}

fn patience(millis: u64) -> Patience {
    Patience {
        whole: Duration::from_millis(millis),
        poll: Duration::ZERO,
    }
}

fn all() -> ByteRange {
    ByteRange::new(0, CHUNKS * CHUNK).unwrap()
}

fn status(image: &LvmSnapshotImage) -> Vec<StatusExtent> {
    let extents = image.status(all(), usize::MAX).unwrap().extents;
    let mut end = 0;
    for extent in &extents {
        assert_eq!(extent.range.start(), end);
        end = extent.range.end();
    }
    assert_eq!(end, image.size());
    extents
}

fn of_chunk(extents: &[StatusExtent], chunk: u64) -> StatusExtent {
    *extents.iter().find(|e| e.range.contains(chunk * CHUNK)).unwrap()
}

/// A kernel that does not answer until it is told to.
struct Hangs {
    asked: mpsc::Sender<()>,
    word: mpsc::Receiver<()>,
}

impl Chooser for Hangs {
    fn choose(&mut self, _: usize) -> usize {
        // Once both are gone it answers at once.
        let _ = self.asked.send(());
        let _ = self.word.recv();
        0
    }
}

#[test]
fn a_device_that_hangs_keeps_nobody_from_the_stores() {
    let (world, image) = world();
    let ((asked, arrived), (say, word)) = (mpsc::channel(), mpsc::channel());
    world.begin(5);
    world.inner().choose_by(Box::new(Hangs { asked, word }));
    thread::scope(|scope| {
        let asking = scope.spawn(|| image.status(all(), usize::MAX));
        arrived.recv().unwrap();
        let (done, told) = mpsc::channel();
        let image = &image;
        scope.spawn(move || done.send(image.graph()));
        let told = told.recv_timeout(Duration::from_secs(10));
        drop(say);
        asking.join().unwrap().unwrap();
        told.expect("a handshake must not wait for a device");
    });
}

#[test]
fn only_chunks_of_the_new_tail_get_a_new_generation() {
    let (world, image) = world();
    let before = status(&image);
    assert_eq!(before.len(), 1);
    world.write(5);
    let after = status(&image);
    assert_eq!(after.len(), 3);
    for chunk in 0..CHUNKS {
        let (old, new) = (of_chunk(&before, chunk), of_chunk(&after, chunk));
        assert_eq!(old.generation == new.generation, chunk != 5, "chunk {chunk}");
        assert_eq!(
            old.place.unwrap().store == new.place.unwrap().store,
            chunk != 5,
            "chunk {chunk}"
        );
    }
    assert_eq!(of_chunk(&after, 5).place.unwrap().offset, 2 * CHUNK);
    // Nothing moves twice.
    world.write(5);
    assert_eq!(status(&image), after);
    world.write(6);
    let last = status(&image);
    assert_eq!(of_chunk(&last, 5).generation, of_chunk(&after, 5).generation);
    assert_ne!(of_chunk(&last, 6).generation, of_chunk(&after, 6).generation);
}

#[test]
fn a_status_of_a_part_is_that_part_of_the_whole() {
    let (world, image) = world();
    for chunk in [3, 4, 9] {
        world.write(chunk);
    }
    let whole = status(&image);
    let range = ByteRange::new(3 * CHUNK + 100, 3 * CHUNK).unwrap();
    let part = image.status(range, usize::MAX).unwrap().extents;
    assert_eq!(
        (part[0].range.start(), part.last().unwrap().range.end()),
        (range.start(), range.end())
    );
    for extent in part {
        let all = of_chunk(&whole, extent.range.start() / CHUNK);
        let skipped = extent.range.start() - all.range.start();
        assert_eq!(extent.generation, all.generation);
        assert_eq!(extent.place.unwrap().offset, all.place.unwrap().offset + skipped);
    }
    assert_eq!(image.status(range, 1).unwrap().extents.len(), 1);
}

#[test]
fn a_copy_under_way_costs_its_locations_for_now_and_nothing_else() {
    let (world, image) = world();
    world.write(1);
    let before = status(&image);
    world.begin(7);
    assert!(world.step(1));
    // Counted, and not in the log: which chunk it is, nobody can tell.
    let meanwhile = status(&image);
    for chunk in 0..CHUNKS {
        let extent = of_chunk(&meanwhile, chunk);
        assert_eq!(extent.place.is_some(), chunk == 1, "chunk {chunk}");
        assert_eq!(extent.generation.is_direct(), chunk == 1, "chunk {chunk}");
    }
    world.finish();
    let after = status(&image);
    for chunk in 0..CHUNKS {
        let same = of_chunk(&before, chunk).generation == of_chunk(&after, chunk).generation;
        assert_eq!(same, chunk != 7, "chunk {chunk}");
    }
}

#[test]
fn a_log_that_lags_behind_is_waited_for() {
    let world = World::new(CHUNKS, 12, Box::new(Nobody));
    let image = world.image(patience(20_000));
    world.begin(7);
    assert!(world.step(0));
    let finisher = thread::spawn({
        let world = world.clone();
        move || {
            thread::sleep(Duration::from_millis(50));
            world.finish();
        }
    });
    assert!(status(&image).iter().all(|e| e.place.is_some()));
    finisher.join().unwrap();
}

#[test]
fn every_answer_samples_anew() {
    let (world, image) = world();
    let before = world.inner().samples;
    for asked in 1..=3 {
        status(&image);
        assert_eq!(world.inner().samples - before, asked);
        image.stands().unwrap();
        assert!(world.inner().samples - before > asked);
        world.inner().samples = before + asked;
    }
}

fn is_gone<T>(answer: Result<T, FrozenError>) -> bool {
    matches!(answer, Err(FrozenError::Gone(_)))
}

#[test]
fn an_overflow_is_the_end_of_it_for_good() {
    let (world, image) = world();
    // Header, one area, and ten chunks of old data.
    for chunk in 0..10 {
        world.write(chunk);
        status(&image);
    }
    world.write(10);
    assert!(is_gone(image.status(all(), usize::MAX)));
    world.inner().lost = None;
    assert!(is_gone(image.status(all(), usize::MAX)) && is_gone(image.stands()));
    assert!(is_gone(image.read_at(0, &mut [0; 4096])));
}

#[test]
fn a_copy_that_never_comes_to_the_log_is_not_waited_for_when_the_snapshot_is_lost() {
    let world = World::new(CHUNKS, 12, Box::new(Nobody));
    let image = world.image(patience(60_000));
    world.begin(7);
    assert!(world.step(0));
    let loser = thread::spawn({
        let world = world.clone();
        move || {
            thread::sleep(Duration::from_millis(50));
            world.inner().lost = Some("Invalid".to_owned());
        }
    });
    assert!(is_gone(image.status(all(), usize::MAX)));
    loser.join().unwrap();
}

#[test]
fn bytes_that_were_copied_while_the_snapshot_was_lost_are_not_given_out() {
    struct AtOnce;
    /// The first writer goes on whenever it can.
    impl Chooser for AtOnce {
        fn choose(&mut self, n: usize) -> usize {
            n - 1
        }
    }
    let world = World::new(CHUNKS, 2, Box::new(AtOnce));
    let image = world.image(patience(0));
    let mut buf = [0; CHUNK_LEN];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf.iter().all(|b| *b == frozen_byte(0)));
    // No room for a single copy: the writer overwrites what is being read.
    world.begin(0);
    assert!(is_gone(image.read_at(0, &mut buf)), "{buf:?}");
}

#[test]
fn a_change_below_that_left_no_trace_still_costs_every_generation() {
    let (world, image) = world();
    world.write(2);
    let before = status(&image);
    let surveys = world.inner().surveys;
    world.inner().witness = Err("a device-mapper device was changed".to_owned());
    let after = status(&image);
    assert_eq!(world.inner().surveys, surveys + 1);
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((old.range, old.place), (new.range, new.place));
        assert_ne!(old.generation, new.generation);
        assert!(new.generation.is_direct());
    }
    assert_eq!(status(&image), after);
}

#[test]
fn what_was_moved_below_is_told_of_where_it_lies_now() {
    let (world, image) = world();
    world.write(2);
    let before = status(&image);
    let move_to = |ground| {
        let mut inner = world.inner();
        inner.ground = ground;
        inner.witness = Err("a device-mapper device was changed".to_owned());
    };
    move_to(None);
    let surveys = world.inner().surveys;
    for _ in 0..5 {
        assert!(status(&image).iter().all(|e| e.place.is_none()));
    }
    assert_eq!(world.inner().surveys, surveys + 1, "not for each question");
    move_to(Some("other"));
    thread::sleep(REMAP_PAUSE);
    let after = image.status(all(), usize::MAX).unwrap();
    for chunk in 0..CHUNKS {
        let (old, new) = (of_chunk(&before, chunk), of_chunk(&after.extents, chunk));
        assert!(new.generation.is_direct() && new.generation != old.generation);
        let disk = after.graph.resolve(new.place.unwrap(), CHUNK).disk().unwrap();
        assert_eq!(after.graph.store(disk.store).identity.as_str(), "id:other");
    }
}

#[test]
fn a_status_below_the_log_is_believed_by_nobody() {
    let (world, image) = world();
    world.write(2);
    world.write(3);
    status(&image);
    // Another snapshot in its place.
    let other = World::new(CHUNKS, 12, Box::new(Nobody));
    std::mem::swap(&mut *world.inner(), &mut *other.inner());
    for _ in 0..2 {
        assert!(
            status(&image)
                .iter()
                .all(|e| e.place.is_none() && !e.generation.is_direct())
        );
    }
}

#[test]
fn a_thaw_is_told_to_everybody_and_removes_the_snapshot() {
    let (world, image) = world();
    image.thaw();
    assert!(is_gone(image.status(all(), usize::MAX)) && is_gone(image.stands()));
    assert!(world.inner().removed > 0);
    let (world, image) = self::world();
    drop(image);
    assert!(world.inner().removed > 0);
}

#[test]
fn free_space_is_told_only_of_what_was_frozen_for_the_image() {
    let (world, image) = world();
    assert!(matches!(image.free_space(), Err(NoFreeSpace::NotFrozen)));
    let image = world.image_of(Strength::FileSystem, patience(0));
    assert_eq!(image.free_space().unwrap().bytes(), 0);
    world.inner().lost = Some("Invalid".to_owned());
    assert!(matches!(image.free_space(), Err(NoFreeSpace::Gone(_))));
}
