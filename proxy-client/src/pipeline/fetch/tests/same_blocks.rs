//! Blocks that are as in the parent: read with their leaf, and not stored.

use super::*;
use crate::image::LEAF;

/// Units of a block.
const UNITS: u64 = BLOCK / UNIT;

/// Fetches the whole world as one batch, of which some blocks are the parent's: its bytes, and what is told of it.
async fn fetch(world: &World, luns: &Luns, same_blocks: &[ByteRange]) -> Result<(Vec<u8>, Fetched)> {
    let fetcher = Fetcher::new(world, luns, FetchPolicy::default());
    let mut batcher = Batcher::new(world.size(), crate::pipeline::BATCHES);
    batcher.feed(map_whole(world, whole(world)).await?);
    let mut batch = batcher.take().unwrap();
    batch.same_blocks = same_blocks.to_vec();
    let fetched = fetcher.fetch_now(&batch, true, None).await?;
    let mut bytes = Vec::new();
    for stretch in &fetched.stretches {
        match &stretch.bytes {
            Some(plain) => bytes.extend_from_slice(plain),
            None => bytes.resize(bytes.len() + memory_len(stretch.range.len()), 0),
        }
    }
    Ok((bytes, fetched))
}

fn blocks(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start * BLOCK, end * BLOCK).unwrap()
}

fn kinds(fetched: &Fetched) -> Vec<(u64, Kind)> {
    let kind = |record: &Record| (record.range.len(), record.kind);
    fetched.records.iter().map(kind).collect()
}

#[test]
fn they_are_read_and_neither_recorded_nor_counted_as_data() {
    let world = World::new(&[false; 64], 64, Vec::new());
    let (bytes, fetched) = run(fetch(&world, &world.luns(), &[blocks(0, 2), blocks(3, 7)])).unwrap();
    assert!(bytes == world.frozen());
    assert_eq!(
        kinds(&fetched),
        [
            (2 * BLOCK, Kind::Same),
            (BLOCK, Kind::Data),
            (4 * BLOCK, Kind::Same),
            (BLOCK, Kind::Data)
        ]
    );
    let tally = &fetched.tally;
    assert_eq!((tally.bytes_direct, tally.bytes_same), (2 * BLOCK, 6 * BLOCK));
    assert_eq!(tally.by_lun, BTreeMap::from([(0, 2 * BLOCK)]));
    assert_eq!(tally.bytes_done(), world.size());
}

/// Through the host as well, and there some of it cannot be read: then that block is not known to be the parent's.
#[test]
fn what_nobody_can_read_of_them_is_told() {
    let world = World::new(&[false; 64], 64, Vec::new());
    world.act(Act::LoseMapping);
    world.fail(None, ByteRange::new(3 * BLOCK + 100, 1));
    let (_, fetched) = run(fetch(&world, &world.luns(), &[blocks(0, 8)])).unwrap();
    assert_eq!(
        kinds(&fetched),
        [
            (3 * BLOCK, Kind::Same),
            (BLOCK, Kind::Unreadable),
            (4 * BLOCK, Kind::Same)
        ]
    );
    let tally = &fetched.tally;
    assert_eq!(
        (tally.bytes_nbd, tally.bytes_same, tally.unreadable.bytes),
        (0, 7 * BLOCK, BLOCK)
    );
    assert_eq!(tally.reasons, BTreeMap::new(), "of data that is stored");
}

proptest! {
    /// However the host cuts them and moves them about: whole blocks or nothing, and of data alone.
    #[test]
    fn they_are_whole_and_of_data(
        zero in proptest::collection::vec(proptest::bool::weighted(0.2), 1..100),
        reply_limit in 1usize..9,
        acts in proptest::collection::vec((points(), acts()), 0..40),
        same in proptest::collection::vec(any::<bool>(), 13),
    ) {
        let world = World::new(&zero, reply_limit, acts);
        let size = world.size();
        let block = |nth: u64| ByteRange::from_bounds(nth * BLOCK, size.min((nth + 1) * BLOCK));
        let same: Vec<ByteRange> =
            (0..13).filter(|nth| same[memory_len(*nth)]).filter_map(block).collect();
        let Ok((bytes, fetched)) = run(fetch(&world, &world.luns(), &same)) else {
            return Ok(());
        };
        prop_assert!(bytes == world.frozen());
        prop_assert!(size < LEAF);
        let mut at = 0;
        for record in &fetched.records {
            prop_assert_eq!(record.range.start(), at);
            at = record.range.end();
            if record.kind == Kind::Same {
                prop_assert!(record.range.start().is_multiple_of(BLOCK));
                prop_assert!(at.is_multiple_of(BLOCK) || at == size);
                for nth in record.range.start() / BLOCK..at.div_ceil(BLOCK) {
                    prop_assert!(same.iter().any(|same| same.contains(nth * BLOCK)), "{}", nth);
                    for unit in nth * UNITS..(at / UNIT).min((nth + 1) * UNITS) {
                        prop_assert!(!zero[memory_len(unit)], "{}", unit);
                    }
                }
            }
        }
        prop_assert_eq!(at, size);
        let tally = &fetched.tally;
        prop_assert_eq!(tally.bytes_done(), size);
        let same = fetched.records.iter().filter(|record| record.kind == Kind::Same);
        prop_assert_eq!(tally.bytes_same, same.map(|record| record.range.len()).sum::<u64>());
    }
}
