//! Batches in a model world, with a writer let in at every point.

mod same_blocks;

use proptest::prelude::*;

use super::*;
use crate::pipeline::world::{Act, Point, UNIT, World};
use crate::plan::batch::{BatchLimits, Batcher};

/// Leaves of two units.
const LEAF: u64 = 2 * UNIT;

/// Fetches the whole world in batches, and puts the bytes together.
async fn fetch_all(world: &World, luns: &Luns, stale: bool) -> Result<(Vec<u8>, Vec<Record>, Tally)> {
    fetch_as(world, luns, stale, FetchPolicy::default()).await
}

async fn fetch_as(
    world: &World,
    luns: &Luns,
    stale: bool,
    policy: FetchPolicy,
) -> Result<(Vec<u8>, Vec<Record>, Tally)> {
    let fetcher = Fetcher::new(world, luns, policy);
    let mut batcher = Batcher::new(
        world.size(),
        BatchLimits {
            leaf: LEAF,
            data: 4 * LEAF,
            extents: 64,
            range: 64 * LEAF,
        },
    );
    batcher.feed(map_whole(world, whole(world)).await?);
    let (mut bytes, mut records, mut tally) = (Vec::new(), Vec::new(), Tally::default());
    while let Some(batch) = batcher.take() {
        let fetched = fetcher.fetch_now(&batch, stale, None).await?;
        for stretch in fetched.stretches {
            assert_eq!(stretch.range.start(), bytes.len() as u64);
            match &stretch.bytes {
                Some(plain) => bytes.extend_from_slice(plain),
                None => bytes.resize(bytes.len() + memory_len(stretch.range.len()), 0),
            }
        }
        records.extend(fetched.records);
        tally.add(&fetched.tally);
    }
    Ok((bytes, records, tally))
}

fn whole(world: &World) -> ByteRange {
    ByteRange::new(0, world.size()).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn points() -> impl Strategy<Value = Point> {
    prop_oneof![
        Just(Point::AfterMap),
        Just(Point::BeforeRead),
        Just(Point::DuringRead),
        Just(Point::AfterRead),
        Just(Point::AfterValidation)
    ]
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        60 => (0u64..64).prop_map(Act::Overwrite),
        6 => Just(Act::Withhold),
        1 => Just(Act::LoseMapping),
        1 => Just(Act::LoseContent)
    ]
}

#[test]
fn a_quiet_volume_is_wholly_direct() {
    let world = World::new(&[false, false, true, true, false, true], 64, Vec::new());
    let (bytes, _, tally) = run(fetch_all(&world, &world.luns(), true)).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!(
        (tally.bytes_direct, tally.bytes_nbd, tally.bytes_zero),
        (3 * UNIT, 0, 3 * UNIT)
    );
    assert_eq!((tally.bytes_moved, tally.validations), (0, 1));
}

#[test]
fn what_moves_after_the_map_is_read_again_from_its_new_place() {
    for point in [
        Point::AfterMap,
        Point::BeforeRead,
        Point::DuringRead,
        Point::AfterRead,
    ] {
        let world = World::new(&[false; 4], 64, Vec::new());
        let luns = world.luns();
        let map = run(map_whole(&world, whole(&world))).unwrap();
        assert_eq!(run(luns.prove(0, &world, &map)).unwrap(), Ok(()));
        world.let_in(point, Act::Overwrite(1));
        let (bytes, _, tally) = run(fetch_all(&world, &luns, false)).unwrap();
        assert!(bytes == world.frozen(), "{point:?}");
        assert_eq!((tally.bytes_direct, tally.bytes_nbd), (4 * UNIT, 0), "{point:?}");
        assert_eq!(
            (tally.bytes_moved, tally.bytes_remapped_direct),
            (UNIT, UNIT),
            "{point:?}"
        );
    }
}

#[test]
fn a_map_that_is_stale_is_confirmed_before_it_is_read_by() {
    let world = World::new(&[false; 4], 64, Vec::new());
    let luns = world.luns();
    let map = run(map_whole(&world, whole(&world))).unwrap();
    assert_eq!(run(luns.prove(0, &world, &map)).unwrap(), Ok(()));
    world.let_in(Point::AfterMap, Act::Overwrite(1));
    let (bytes, _, tally) = run(fetch_all(&world, &luns, true)).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!((tally.bytes_moved, tally.bytes_direct), (0, 4 * UNIT));
}

/// One reply tells of up to [`MAP_WINDOW`](crate::pipeline::limits::MAP_WINDOW) bytes.
#[test]
fn what_had_no_location_for_a_moment_is_asked_for_again_and_read_directly() {
    let world = World::new(&[false, false, true, false], 64, Vec::new());
    let luns = proven(&world);
    world.act(Act::Withhold);
    let (bytes, _, tally) = run(fetch_all(&world, &luns, true)).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!((tally.bytes_direct, tally.bytes_nbd), (3 * UNIT, 0));
    assert_eq!(tally.bytes_moved, 0, "nothing was read in vain");
}

#[test]
fn what_never_has_a_location_is_asked_for_once_in_a_batch() {
    for (luns, questions) in [(true, 4), (false, 0)] {
        let world = World::new(&[false; 32], 64, Vec::new());
        world.act(Act::LoseMapping);
        let luns = if luns { world.luns() } else { Luns::new(Vec::new()) };
        let (bytes, _, tally) = run(fetch_all(&world, &luns, true)).unwrap();
        assert!(bytes == world.frozen());
        assert_eq!((tally.bytes_direct, tally.bytes_nbd), (0, 32 * UNIT));
        assert_eq!(world.questions(), questions);
    }
}

#[test]
fn what_moves_in_every_round_comes_over_nbd() {
    let world = World::new(&[false; 2], 64, Vec::new());
    let luns = world.luns();
    let map = run(map_whole(&world, whole(&world))).unwrap();
    assert_eq!(run(luns.prove(0, &world, &map)).unwrap(), Ok(()));
    for _ in 0..9 {
        world.let_in(Point::AfterRead, Act::Restamp);
    }
    let (bytes, _, tally) = run(fetch_all(&world, &luns, false)).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!((tally.bytes_direct, tally.bytes_nbd), (0, 2 * UNIT));
    assert_eq!((tally.bytes_moved, tally.bytes_remapped_direct), (2 * UNIT, 0));
}

#[test]
fn zeroes_that_move_in_every_round_are_looked_at_over_nbd() {
    let world = World::new(&[true; 4], 64, Vec::new());
    for _ in 0..9 {
        world.let_in(Point::AfterMap, Act::Restamp);
    }
    let (bytes, _, tally) = run(fetch_all(&world, &world.luns(), false)).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!((tally.bytes_zero, tally.bytes_nbd), (4 * UNIT, 0));
}

/// Allocated zeroes prove nothing: samples are looked for once in each of the first batches, not for every piece, and not
/// for ever.
#[test]
fn a_lun_that_cannot_be_proven_costs_a_bounded_search_for_samples() {
    for (units, searches) in [(32, 4), (160, 8)] {
        let world = World::new(&vec![false; units], 1000, Vec::new())
            .fragmented()
            .allocated_zeroes();
        let (bytes, _, tally) = run(fetch_all(&world, &world.luns(), false)).unwrap();
        assert!(bytes == world.frozen());
        assert_eq!((tally.bytes_direct, tally.bytes_nbd), (0, units as u64 * UNIT));
        assert_eq!(world.maps_asked(), 1 + searches * 24);
    }
}

/// A block device does not tell what of it was ever written: of a volume that is nearly all zeroes, random samples show nothing.
#[test]
fn a_lun_is_proven_by_the_little_that_it_holds() {
    for unit in (0..2048).step_by(128) {
        let world = World::new(&vec![false; 2048], 1000, Vec::new())
            .allocated_zeroes()
            .with_content_in(unit);
        let map = run(map_whole(&world, whole(&world))).unwrap();
        assert_eq!(
            run(world.luns().prove(0, &world, &map)).unwrap(),
            Ok(()),
            "{unit}"
        );
    }
}

/// The check after the read is what makes this pass: without it the overwritten unit would be kept.
#[test]
fn a_host_that_breaks_the_law_cannot_be_helped() {
    let acts = (0..40).map(|_| (Point::BeforeRead, Act::Overwrite(1))).collect();
    let world = World::new(&[false; 4], 64, acts).careless();
    match run(fetch_all(&world, &world.luns(), true)) {
        Ok((bytes, ..)) => assert!(bytes != world.frozen()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::WrongLun),
    }
}

/// The LUN of a world, proven while all was well.
fn proven(world: &World) -> Luns {
    let luns = world.luns();
    let map = run(map_whole(world, whole(world))).unwrap();
    assert_eq!(run(luns.prove(0, world, &map)).unwrap(), Ok(()));
    luns
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start, end).unwrap()
}

#[test]
fn what_the_lun_cannot_read_comes_through_the_host() {
    let world = World::new(&[false; 64], 64, Vec::new());
    let luns = proven(&world);
    world.fail(Some(range(9 * UNIT, 9 * UNIT + 1)), None);
    let (bytes, _, tally) = run(fetch_all(&world, &luns, false)).unwrap();
    assert!(bytes == world.frozen());
    // A batch is one read here.
    assert_eq!((tally.bytes_direct, tally.bytes_nbd), (56 * UNIT, 8 * UNIT));
    assert_eq!(tally.unreadable.bytes, 0);
    let reasons: Vec<&String> = tally.reasons.keys().collect();
    assert!(
        reasons.len() == 1 && reasons[0].contains("could not be read"),
        "{reasons:?}"
    );
}

#[test]
fn what_nobody_can_read_is_zero_and_said_to_be_unreadable() {
    let world = World::new(&[false; 64], 64, Vec::new());
    let luns = proven(&world);
    let bad = range(9 * UNIT, 9 * UNIT + 1);
    world.fail(Some(bad), Some(bad));
    let (bytes, records, tally) = run(fetch_all(&world, &luns, false)).unwrap();
    let lost = range(8 * UNIT, 16 * UNIT);
    let mut expected = world.frozen();
    expected[memory_len(8 * UNIT)..memory_len(16 * UNIT)].fill(0);
    assert!(bytes == expected);
    assert_eq!(
        (tally.unreadable.listed.as_slice(), tally.bytes_done()),
        (&[lost][..], world.size())
    );
    let unreadable: Vec<ByteRange> = records
        .iter()
        .filter(|r| r.kind == Kind::Unreadable)
        .map(|r| r.range)
        .collect();
    assert_eq!(unreadable, [lost]);
}

/// The host's disk fails first, and the host finds out only then that its frozen image is lost (law P5).
#[test]
fn what_went_with_the_frozen_image_is_never_called_unreadable() {
    let world = World::new(&[false; 64], 64, Vec::new());
    world.fail(None, Some(whole(&world)));
    world.act(Act::LoseMapping);
    let luns = Luns::new(Vec::new());
    let map = run(map_whole(&world, whole(&world))).unwrap();
    world.act(Act::LoseContent);
    let mut batcher = Batcher::new(
        world.size(),
        BatchLimits {
            leaf: LEAF,
            data: 1 << 20,
            extents: 64,
            range: 1 << 20,
        },
    );
    batcher.feed(map.into_iter().map(|extent| MappedExtent {
        place: None,
        ..extent
    }));
    let fetcher = Fetcher::new(&world, &luns, FetchPolicy::default());
    let error = run(fetcher.fetch_now(&batcher.take().unwrap(), false, None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FrozenImageGone);
}

#[test]
fn a_disk_that_has_failed_makes_no_backup() {
    let world = World::new(&[false; 16], 64, Vec::new());
    world.fail(Some(range(0, 1)), Some(range(0, 1)));
    let luns = world.luns();
    let fetcher = Fetcher::new(&world, &luns, FetchPolicy::default());
    fetcher.unreadable.store(UNREADABLE_MAX - 4096, Ordering::Relaxed);
    for allowed in [true, false] {
        let mut batcher = Batcher::new(
            world.size(),
            BatchLimits {
                leaf: LEAF,
                data: 1 << 20,
                extents: 64,
                range: 1 << 20,
            },
        );
        batcher.feed(run(map_whole(&world, whole(&world))).unwrap());
        let fetched = run(fetcher.fetch_now(&batcher.take().unwrap(), false, None));
        assert_eq!(fetched.is_ok(), allowed);
        let kind = fetched.err().map(|error| error.kind());
        assert!(kind.is_none_or(|kind| kind == ErrorKind::HostCannotRead));
    }
}

/// What stood in for bytes before the job was interrupted is as much missing as what does now.
#[test]
fn who_goes_on_counts_what_could_not_be_read_before() {
    let world = World::new(&[false; 16], 64, Vec::new());
    world.fail(Some(range(0, 1)), Some(range(0, 1)));
    let done = |unreadable: u64, bytes_nbd: u64| Tally {
        unreadable: crate::unreadable::UnreadableRanges::unlisted(unreadable),
        bytes_nbd,
        ..Tally::default()
    };
    for (done, allowed) in [
        (done(UNREADABLE_MAX - 4096, 1), true),
        (done(UNREADABLE_MAX - 4095, 1), false),
        (done(UNREADABLE_AT_FIRST - 4096, 0), true),
        (done(UNREADABLE_AT_FIRST - 4095, 0), false),
    ] {
        let policy = FetchPolicy::default().going_on_from(&done);
        let fetched = run(fetch_as(&world, &world.luns(), false, policy));
        match fetched {
            Ok((_, _, tally)) => assert!(allowed && tally.unreadable.bytes == 4096, "{tally:?}"),
            Err(error) => assert!(!allowed && error.kind() == ErrorKind::HostCannotRead, "{error}"),
        }
    }
}

#[test]
fn zeroes_that_move_and_that_the_host_cannot_read_are_unreadable() {
    for moves in [1, 9] {
        let world = World::new(&[true; 16], 64, Vec::new());
        world.fail(None, Some(range(0, 1)));
        for _ in 0..moves {
            world.let_in(Point::AfterMap, Act::Restamp);
        }
        let (bytes, _, tally) = run(fetch_all(&world, &world.luns(), false)).unwrap();
        assert!(bytes == world.frozen());
        // As long as they settle, nobody has to look.
        let lost = if moves == 1 { 0 } else { 4096 };
        assert_eq!(tally.unreadable.bytes, lost, "{moves}");
    }
}

/// It says nothing against the disk, and nothing for it.
#[test]
fn a_sample_that_the_host_cannot_read_ends_no_job() {
    let world = World::new(&[false; 64], 64, Vec::new());
    world.fail(None, Some(range(0, 32 * UNIT)));
    let luns = world.luns();
    let (bytes, _, tally) = run(fetch_all(&world, &luns, false)).unwrap();
    assert!(bytes[memory_len(32 * UNIT)..] == world.frozen()[memory_len(32 * UNIT)..]);
    assert_eq!(tally.bytes_done(), world.size());
}

#[test]
fn an_audit_that_finds_a_difference_ends_the_trust_in_the_lun() {
    let world = World::new(&[false; 16], 64, Vec::new());
    let luns = proven(&world);
    world.lie_at(5 * UNIT);
    let policy = FetchPolicy {
        audit_percent: 100.0,
        ..FetchPolicy::default()
    };
    let error = run(fetch_as(&world, &luns, false, policy.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AuditFailed);
    let (bytes, _, tally) = run(fetch_as(&world, &luns, false, policy)).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!((tally.bytes_direct, tally.bytes_nbd), (0, 16 * UNIT));
}

#[test]
fn without_a_fallback_nothing_comes_through_the_host() {
    let world = World::new(&[false; 16], 64, Vec::new());
    let luns = proven(&world);
    let policy = FetchPolicy {
        no_fallback: true,
        ..FetchPolicy::default()
    };
    let (_, _, tally) = run(fetch_as(&world, &luns, false, policy.clone())).unwrap();
    assert_eq!(tally.bytes_direct, 16 * UNIT);
    world.fail(Some(range(5 * UNIT, 6 * UNIT)), None);
    let error = run(fetch_as(&world, &luns, false, policy)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PolicyMissed);
}

proptest! {
    #[test]
    fn no_stale_byte_is_ever_committed(
        zero in proptest::collection::vec(proptest::bool::weighted(0.3), 1..40),
        reply_limit in 1usize..9,
        acts in proptest::collection::vec((points(), acts()), 0..120),
        stale in any::<bool>(),
    ) {
        let gone = acts.iter().any(|(_, act)| matches!(act, Act::LoseContent));
        let world = World::new(&zero, reply_limit, acts);
        match run(fetch_all(&world, &world.luns(), stale)) {
            Ok((bytes, records, tally)) => {
                prop_assert!(bytes == world.frozen());
                prop_assert_eq!(tally.bytes_done(), world.size());
                let mut at = 0;
                for record in &records {
                    prop_assert_eq!(record.range.start(), at);
                    at = record.range.end();
                }
                prop_assert_eq!(at, world.size());
                prop_assert!(tally.bytes_remapped_direct <= tally.bytes_moved);
            }
            Err(error) => {
                prop_assert!(gone, "{}", error);
                prop_assert_eq!(error.kind(), ErrorKind::FrozenImageGone);
            }
        }
    }
}
