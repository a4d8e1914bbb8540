//! Flipped bytes: with a checksum that tells of them, and with one that was made to fit.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::{BLOCK_SIZE, MetadataError, PoolGeometry, ThinMap};
use super::{Builder, Device, Memory};

const GEOMETRY: PoolGeometry = PoolGeometry {
    data_block_size: 64 << 10,
    data_blocks: 1 << 22,
};

/// Two devices that share nothing, of two levels and of one.
static METADATA: LazyLock<Memory> = LazyLock::new(|| {
    let scattered = |count: u64| (0..count).map(|n| (n * 7 % 64 + n * 64, n * 31, 0)).collect();
    let device = |id, mappings| Device {
        id,
        created: 1,
        mappings,
    };
    Builder::metadata(&[device(1, scattered(6_000)), device(2, scattered(20))])
});

fn read(metadata: &Memory, device: u64) -> Result<ThinMap, MetadataError> {
    ThinMap::read(metadata, 0, device, GEOMETRY)
}

/// The block `n` in 64 from its beginning, where the header is, or anywhere.
fn places() -> impl Strategy<Value = usize> {
    prop_oneof![0..64usize, 0..BLOCK_SIZE]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flipped_byte_gives_the_right_map_or_none(
        block in 0..40u64, at in places(), flip in 1..=255u8, device in 1..=2u64
    ) {
        let truth = read(&METADATA, device).unwrap();
        let mut bad = METADATA.clone();
        let block = block % (bad.0.len() / BLOCK_SIZE) as u64;
        bad.block_mut(block)[at] ^= flip;
        // A block of the other device is never looked at.
        if let Ok(map) = read(&bad, device) {
            prop_assert!(map == truth, "a flip at {at} of block {block} gave another map");
        }
    }

    /// Nothing can tell a mapping that was forged well; but nothing may make us run for ever, or fall over.
    #[test]
    fn bytes_forged_under_a_good_checksum_never_panic_and_never_loop(
        forged in proptest::collection::vec((0..40u64, places(), 1..=255u8), 1..8), device in 1..=2u64
    ) {
        let mut bad = METADATA.clone();
        for (block, at, flip) in forged {
            let block = block % (bad.0.len() / BLOCK_SIZE) as u64;
            bad.block_mut(block)[at] ^= flip;
            bad.seal(block);
        }
        if let Ok(map) = read(&bad, device) {
            prop_assert!(map.runs.windows(2).all(|w| w[0].thin + w[0].len <= w[1].thin));
            prop_assert!(map.runs.iter().all(|r| r.data + r.len <= GEOMETRY.data_blocks));
        }
    }

    #[test]
    fn any_bytes_at_all_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..3 * BLOCK_SIZE), root in 0..4u64) {
        let whole = bytes.len() / BLOCK_SIZE * BLOCK_SIZE;
        let noise = Memory(bytes[..whole].to_vec());
        prop_assert!(ThinMap::read(&noise, root, 1, GEOMETRY).is_err());
    }
}

#[test]
fn every_block_on_the_way_is_checked() {
    let good: &Memory = &METADATA;
    let blocks = (good.0.len() / BLOCK_SIZE) as u64;
    // Any byte of a block will do: its sum is over all of them.
    let noticed = (0..blocks).filter(|&block| {
        let mut bad = good.clone();
        bad.block_mut(block)[4000] ^= 1;
        read(&bad, 1).is_err()
    });
    // All but the only leaf of the other device.
    assert_eq!(noticed.count() as u64, blocks - 1);
}
