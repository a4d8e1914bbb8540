//! Batches in a model world, with a writer let in at every point.

use proptest::prelude::*;

use super::*;
use crate::pipeline::world::{Act, Point, UNIT, World};
use crate::plan::batch::{BatchLimits, Batcher};

/// Leaves of two units.
const LEAF: u64 = 2 * UNIT;

/// Fetches the whole world in batches, and puts the bytes together.
async fn fetch_all(world: &World, luns: &Luns, stale: bool) -> Result<(Vec<u8>, Vec<Record>, Tally)> {
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
        let fetched = fetch(world, luns, FetchPolicy::default(), batch, stale).await?;
        for stretch in fetched.stretches {
            assert_eq!(stretch.range.start(), bytes.len() as u64);
            bytes.extend(
                stretch
                    .bytes
                    .unwrap_or_else(|| vec![0; memory_len(stretch.range.len())]),
            );
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
    prop_oneof![60 => (0u64..64).prop_map(Act::Overwrite), 1 => Just(Act::LoseMapping), 1 => Just(Act::LoseContent)]
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
