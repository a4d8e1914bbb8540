//! What costs the frozen image, what does not, and that the writer never pays.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cow::tests::bench::{Bench, read_all};
use crate::cow::tests::memory::{Operation, Side};
use crate::cow::{CopyOptions, CowError, Origin, OutOfBounds};
use crate::frozen::{FrozenError, FrozenImage, Stability, StatusExtent};
use crate::limits::{COPY_UNIT, FROZEN_IMAGES_MAX};
use crate::map::Content;
use crate::range::ByteRange;
use crate::storage::Standing;

fn is_gone(image: &dyn FrozenImage) -> bool {
    let status = image.status(ByteRange::new(0, 1).unwrap(), 1);
    let read = image.read_at(0, &mut [0]);
    let gone = [status.is_err(), read.is_err()];
    assert_eq!(gone[0], gone[1]);
    assert!(
        !gone[0]
            || matches!(
                (status, read),
                (Err(FrozenError::Gone(_)), Err(FrozenError::Gone(_)))
            )
    );
    gone[0]
}

/// What became of the copy area since the freeze is nothing to an image that stands; the next one has its places.
#[test]
fn copies_that_have_no_place_at_the_freeze_get_none_later_and_it_is_told_why() {
    let bench = Bench::full(4 * COPY_UNIT, 8);
    bench.copies_are_opaque.store(true, Ordering::SeqCst);
    let bytes = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    let why = |nth: usize| bench.live.living().images[nth].why_copies_have_no_place();
    assert_eq!(why(0).as_deref(), Some("not in sync"));
    bench.copies_are_opaque.store(false, Ordering::SeqCst);
    bench.live.write_at(0, &[1; 512], false).unwrap();
    let direct = |image: &dyn FrozenImage| -> Vec<bool> {
        let whole = ByteRange::new(0, image.size()).unwrap();
        let status = image.status(whole, usize::MAX).unwrap();
        let disk = |extent: &StatusExtent| status.graph.resolve(extent.place.unwrap(), 1).disk();
        (status.extents.iter())
            .map(|extent| disk(extent).is_some())
            .collect()
    };
    assert_eq!(direct(&*image), [false, true], "what was copied, and all else");
    assert!(read_all(&*image).unwrap() == bytes);
    let next = bench.live.freeze().unwrap();
    bench.live.write_at(0, &[2; 512], false).unwrap();
    assert_eq!((why(1), direct(&*next)), (None, vec![true, true]));
}

#[test]
fn a_full_copy_area_costs_the_frozen_image_and_not_the_writer() {
    let bench = Bench::full(4 * COPY_UNIT, 2);
    let frozen = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    bench.live.write_at(0, &[1; 1], false).unwrap();
    bench.live.write_at(COPY_UNIT, &[2; 1], false).unwrap();
    let full = bench.live.copy_area_use();
    assert_eq!((full.used, full.size), (2 * COPY_UNIT, 2 * COPY_UNIT));
    assert!(
        read_all(&*image).unwrap() == frozen,
        "the last slot is as good as any"
    );

    bench.live.write_at(2 * COPY_UNIT, &[3; 1], false).unwrap();
    assert!(is_gone(&*image));
    let mut live = [0; 1];
    bench.live.read_at(2 * COPY_UNIT, &mut live).unwrap();
    assert_eq!(live, [3]);

    // A frozen image that is gone does not stand in the way of the next.
    let now = bench.snapshot();
    let next = bench.live.freeze().unwrap();
    bench.live.write_at(0, &[9; 1], false).unwrap();
    assert!(read_all(&*next).unwrap() == now);
    drop(image);
    assert!(
        read_all(&*next).unwrap() == now,
        "the old image takes nothing with it"
    );
}

#[test]
fn an_error_of_the_copy_costs_the_frozen_image_and_not_the_writer() {
    for (side, operation) in [
        (Side::Origin, Operation::Read),
        (Side::CopyArea, Operation::WriteThrough),
    ] {
        let bench = Bench::full(2 * COPY_UNIT, 8);
        let image = bench.live.freeze().unwrap();
        bench.hooks.set(move |moment| {
            let hit = moment.side == side && moment.operation == operation && !moment.done;
            if hit {
                Err(io::Error::other("injected"))
            } else {
                Ok(())
            }
        });
        bench.live.write_at(5, &[3; 1], true).unwrap();
        bench.hooks.set(|_| Ok(()));
        assert!(is_gone(&*image));
        assert_eq!(bench.snapshot()[5], 3);
    }
}

#[test]
fn an_error_of_the_origin_is_the_writers_and_costs_nothing_else() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let frozen = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    bench.hooks.set(|moment| {
        let hit = moment.side == Side::Origin && moment.operation == Operation::Write && moment.done;
        if hit {
            Err(io::Error::other("injected"))
        } else {
            Ok(())
        }
    });
    assert!(bench.live.write_at(5, &[3; 1], false).is_err());
    bench.hooks.set(|_| Ok(()));
    assert!(read_all(&*image).unwrap() == frozen);
}

#[test]
fn a_read_error_of_the_origin_is_no_loss_of_the_image() {
    let bench = Bench::full(COPY_UNIT, 8);
    let image = bench.live.freeze().unwrap();
    bench.hooks.set(|moment| {
        if moment.operation == Operation::Read {
            Err(io::Error::other("injected"))
        } else {
            Ok(())
        }
    });
    assert!(matches!(read_all(&*image), Err(FrozenError::Io(_))));
    bench.hooks.set(|_| Ok(()));
    assert!(read_all(&*image).is_ok());
}

#[test]
fn a_read_error_after_the_content_was_lost_says_gone() {
    let bench = Bench::full(COPY_UNIT, 8);
    let image = bench.live.freeze().unwrap();
    *bench.standing.lock().unwrap() = Standing::ContentLost("the test took it".to_owned());
    bench.hooks.set(|moment| {
        if moment.operation == Operation::Read {
            Err(io::Error::other("injected"))
        } else {
            Ok(())
        }
    });
    assert!(matches!(read_all(&*image), Err(FrozenError::Gone(_))));
}

#[test]
fn an_origin_that_could_not_be_synced_once_is_not_frozen_any_more() {
    let fail_syncs = |bench: &Bench| {
        bench.hooks.set(|moment| {
            if moment.side == Side::Origin && moment.operation == Operation::Sync && moment.done {
                Err(io::Error::other("injected"))
            } else {
                Ok(())
            }
        });
    };
    let ways: [fn(&Bench) -> bool; 3] = [
        |bench| bench.live.flush().is_err(),
        |bench| bench.live.write_at(0, &[1], true).is_err(),
        |bench| matches!(bench.live.freeze(), Err(CowError::Io(_))),
    ];
    for told in ways {
        let bench = Bench::full(COPY_UNIT, 8);
        fail_syncs(&bench);
        assert!(told(&bench));
        // The kernel tells of lost pages once: the next sync finds nothing wrong. But what is lost is lost, and the next to flush may
        // be another client.
        bench.hooks.set(|_| Ok(()));
        assert!(bench.live.flush().is_err());
        assert!(bench.live.write_at(0, &[1], true).is_err());
        bench.live.write_at(0, &[1], false).unwrap();
        assert!(matches!(bench.live.freeze(), Err(CowError::SyncFailed(_))));
    }
}

#[test]
fn one_frozen_image_after_another() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let mut uuids = Vec::new();
    for round in 0..3 {
        let frozen = bench.snapshot();
        let image = bench.live.freeze().unwrap();
        bench.live.write_at(0, &[round; 7], false).unwrap();
        assert!(read_all(&*image).unwrap() == frozen);
        assert_eq!(image.description().stability, Stability::Moves);
        uuids.push(image.description().uuid);
        if round == 0 {
            drop(image);
        } else {
            image.thaw();
            image.thaw();
            assert!(is_gone(&*image));
        }
        assert_eq!(bench.live.copy_area_use().used, 0);
    }
    uuids.dedup();
    assert_eq!(uuids.len(), 3);
}

#[test]
fn frozen_images_are_as_many_as_they_may_be() {
    let bench = Bench::full(COPY_UNIT, 8);
    let mut images: Vec<_> = (0..FROZEN_IMAGES_MAX)
        .map(|_| bench.live.freeze().unwrap())
        .collect();
    assert!(matches!(bench.live.freeze(), Err(CowError::Busy)));
    bench.live.write_at(0, &[1], false).unwrap();
    assert_eq!(bench.live.copy_area_use().used, COPY_UNIT, "one copy serves all");
    images.remove(3).thaw();
    bench.live.freeze().unwrap();
    for image in images {
        assert_eq!(read_all(&*image).unwrap()[0], super::bench::original(0));
    }
}

#[test]
fn a_lost_mapping_takes_the_locations_and_leaves_the_bytes() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let frozen = bench.snapshot();
    let image = bench.live.freeze().unwrap();
    bench.live.write_at(0, &[1; 1], false).unwrap();
    *bench.standing.lock().unwrap() = Standing::MappingLost("a reader".into());
    let whole = ByteRange::new(0, 2 * COPY_UNIT).unwrap();
    for _ in 0..2 {
        let extents = image.status(whole, usize::MAX).unwrap().extents;
        assert_eq!(extents.len(), 1);
        assert!(!extents[0].generation.is_direct() && extents[0].place.is_none());
        assert!(read_all(&*image).unwrap() == frozen);
        // The reader has gone again: what it did to the mapping meanwhile, nobody knows.
        *bench.standing.lock().unwrap() = Standing::Good;
    }
    *bench.standing.lock().unwrap() = Standing::ContentLost("a writer".into());
    assert!(is_gone(&*image));
    *bench.standing.lock().unwrap() = Standing::Good;
    assert!(is_gone(&*image), "for good");
}

#[test]
fn a_witness_that_is_lost_at_the_freeze_fails_it() {
    let bench = Bench::full(COPY_UNIT, 8);
    *bench.standing.lock().unwrap() = Standing::ContentLost("a writer".into());
    assert!(matches!(bench.live.freeze(), Err(CowError::WitnessLost(_))));
    *bench.standing.lock().unwrap() = Standing::Good;
    assert!(bench.live.freeze().is_ok());
}

#[test]
fn nothing_is_punched_while_a_frozen_image_lives() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let punches = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&punches);
    bench.hooks.set(move |moment| {
        if moment.operation == Operation::Punch && !moment.done {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let image = bench.live.freeze().unwrap();
    bench.live.trim(0, 4096, false).unwrap();
    bench.live.write_zeroes(0, 4096, false, false).unwrap();
    assert_eq!(punches.load(Ordering::SeqCst), 0);
    assert_eq!(bench.snapshot()[..4096], [0; 4096]);
    image.thaw();
    bench.live.write_zeroes(0, 4096, true, false).unwrap();
    assert_eq!(punches.load(Ordering::SeqCst), 0, "the blocks shall stay");
    bench.live.write_zeroes(0, 4096, false, false).unwrap();
    bench.live.trim(0, 4096, false).unwrap();
    assert_eq!(punches.load(Ordering::SeqCst), 2);
}

#[test]
fn a_large_sparse_volume_with_a_short_last_unit() {
    const GIB: u64 = 1 << 30;
    let size = GIB + 1;
    let data = [
        ByteRange::new(4096, 4096).unwrap(),
        ByteRange::new(8 * COPY_UNIT, 4096).unwrap(),
        ByteRange::new(GIB, 1).unwrap(),
    ];
    let bench = Bench::new(size, 8, &data);
    let image = bench.live.freeze().unwrap();
    let status = |image: &dyn FrozenImage| {
        image
            .status(ByteRange::new(0, size).unwrap(), usize::MAX)
            .unwrap()
            .extents
    };
    let before = status(&*image);
    let contents: Vec<Content> = before.iter().map(|e| e.content).collect();
    assert_eq!(
        contents,
        [
            Content::Hole,
            Content::Data,
            Content::Hole,
            Content::Data,
            Content::Hole,
            Content::Data
        ]
    );
    assert!(before.iter().all(|e| e.generation.is_direct()));

    // A unit that was wholly zero is not copied; its neighbour with data in it is, even for a write beside the data.
    bench.live.write_at(512 << 20, &[7; 4096], false).unwrap();
    assert_eq!(bench.live.copy_area_use().used, 0);
    bench.live.write_at(0, &[7; 1], false).unwrap();
    assert_eq!(bench.live.copy_area_use().used, COPY_UNIT);
    bench.live.write_at(9 * COPY_UNIT - 1, &[7; 1], false).unwrap();
    assert_eq!(bench.live.copy_area_use().used, 2 * COPY_UNIT);
    bench.live.write_at(GIB, &[7; 1], true).unwrap();
    assert_eq!(bench.live.copy_area_use().used, 3 * COPY_UNIT);

    let after = status(&*image);
    let mut last = [0; 3];
    image.read_at(GIB - 2, &mut last).unwrap();
    assert_eq!(last, [0, 0, super::bench::original(GIB)]);
    let mut middle = [1; 2];
    image.read_at(512 << 20, &mut middle).unwrap();
    assert_eq!(middle, [0, 0]);
    assert_eq!(
        after.iter().map(|e| (e.range, e.content)).collect::<Vec<_>>(),
        before.iter().map(|e| (e.range, e.content)).collect::<Vec<_>>()
    );
    for nth in [1, 3, 5] {
        assert_ne!(after[nth].generation, before[nth].generation);
    }
    assert_eq!(after[2], before[2], "a zero stays known");
}

#[test]
fn requests_past_the_end_are_refused() {
    let size = COPY_UNIT + 1;
    let bench = Bench::full(size, 8);
    let refused = |result: io::Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.get_ref().is_some_and(|inner| inner.is::<OutOfBounds>()));
    };
    bench.live.write_at(size - 1, &[1], false).unwrap();
    bench.live.write_at(size, &[], false).unwrap();
    refused(bench.live.write_at(size, &[1], false));
    refused(bench.live.write_at(u64::MAX, &[1, 2], false));
    refused(bench.live.read_at(size - 1, &mut [0; 2]));
    refused(bench.live.trim(1, size, false));
    refused(bench.live.write_zeroes(u64::MAX, u64::MAX, false, false));
}

#[test]
fn a_copy_area_without_a_slot_is_refused() {
    let one = Bench::full(COPY_UNIT, 1);
    let clock = || Arc::new(crate::generation::GenerationClock::start().unwrap());
    let with = |size: u64| {
        let copy_area = super::memory::Memory::new(Side::CopyArea, size, one.hooks.clone());
        Origin::with_backings(
            Box::new(one.origin.clone()),
            Box::new(copy_area),
            Box::new(NoGround),
            clock(),
            CopyOptions::default(),
        )
    };
    assert!(with(2 * COPY_UNIT).is_ok());
    assert!(matches!(
        with(2 * COPY_UNIT - 1),
        Err(CowError::CopyAreaTooSmall { .. })
    ));
    assert!(matches!(with(0), Err(CowError::CopyAreaTooSmall { .. })));
}

struct NoGround;

impl crate::cow::Ground for NoGround {
    fn survey(&self, _: bool) -> Result<crate::cow::Survey, CowError> {
        Err(CowError::Busy)
    }
}
