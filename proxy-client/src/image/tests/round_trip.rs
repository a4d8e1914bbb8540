//! What goes in comes out, whatever the sizes and steps.

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert_eq, prop_oneof, proptest};

use super::{Stretch, decode, decode_in, encode, encode_with, header, small, stretch, volume};
use crate::image::{Kind, LEAF};

#[test]
fn every_size_at_an_edge_comes_back() {
    let mib = 1 << 20;
    for size in [
        0,
        1,
        LEAF - 1,
        LEAF,
        LEAF + 1,
        mib - 1,
        mib,
        mib + 1,
        17 * mib + 5,
    ] {
        for kind in [Kind::Data, Kind::Zero, Kind::Hole, Kind::Unreadable] {
            let stretches: Vec<_> = (size > 0).then(|| stretch(size, kind, 3)).into_iter().collect();
            let (image, plain, end) = encode(&stretches);
            let decoded = decode(&image).unwrap();
            assert!(decoded.plain == plain, "{size} bytes of {kind:?}");
            assert_eq!(decoded.end, end);
            assert_eq!(decoded.header, header(size));
            assert_eq!(decoded.records, volume(&stretches).0);
        }
    }
}

#[test]
fn the_step_of_the_reader_does_not_matter() {
    let (image, plain, _) = encode(&small());
    for step in [1, 2, 7, 4096, image.len()] {
        assert!(decode_in(&image, step).unwrap().plain == plain, "{step}");
    }
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    let kind = prop_oneof![
        3 => Just(Kind::Data),
        1 => Just(Kind::Zero),
        1 => Just(Kind::Hole),
        1 => Just(Kind::Unreadable),
    ];
    let length = prop_oneof![
        1..5000_u64,
        1..5 * LEAF,
        (1..40_u64).prop_map(|leaves| leaves * LEAF)
    ];
    let one = (length, kind, 1..20_u8).prop_map(|(length, kind, seed)| stretch(length, kind, seed));
    proptest::collection::vec(one, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// And the root depends on the volume alone, not on how it was cut into pieces.
    #[test]
    fn encode_decode_identity(stretches in stretches(), piece in 1..40_u64) {
        let (records, plain) = volume(&stretches);
        let header = header(plain.len() as u64);
        let (image, end) = encode_with(&header, &records, &plain, piece * LEAF);
        let decoded = decode(&image).unwrap();
        prop_assert_eq!(decoded.plain == plain, true);
        prop_assert_eq!(&decoded.end, &end);
        let mut joined = Vec::new();
        records.iter().for_each(|record| crate::image::record::push_joined(&mut joined, *record));
        prop_assert_eq!(decoded.records, joined);
        let (_, other) = encode_with(&header, &records, &plain, 100 * LEAF);
        prop_assert_eq!(other.root, end.root);
    }
}
