//! Holes cost their leaf hashes and nothing else.

use std::time::{Duration, Instant};

use volmap::generation::Generation;
use volmap::range::ByteRange;

use super::{header, table_entries};
use crate::image::{
    Content, DEFAULT_LEVEL, Decoder, Encoder, End, Event, Kind, LEAF, Receipt, Record, Totals,
    compress_piece, is_zero,
};

/// An image of stretches that hold no data.
pub(super) fn without_data(stretches: &[(u64, Kind)]) -> (Vec<u8>, End) {
    let size = stretches.iter().map(|(length, _)| length).sum();
    let (mut encoder, first) = Encoder::new(&header(size));
    let mut records = Vec::new();
    let mut at = 0;
    for (length, kind) in stretches {
        records.push(Record {
            range: ByteRange::new(at, *length).unwrap(),
            kind: *kind,
            receipt: Receipt::unread(Generation::from_wire(1)),
        });
        at += length;
    }
    let range = ByteRange::new(0, size).unwrap();
    let mut written = vec![first];
    written.extend(
        encoder
            .append(compress_piece(range, Content::Zeroes, &records, DEFAULT_LEVEL))
            .unwrap(),
    );
    let (rest, end) = encoder.finish(Totals::default()).unwrap();
    written.extend(rest);
    (written.concat(), end)
}

fn read(image: &[u8]) -> (u64, End) {
    let mut decoder = Decoder::new();
    let mut at = 0;
    for bytes in image.chunks(1 << 20) {
        decoder.push(bytes);
        while let Some(event) = decoder.next_event().unwrap() {
            match event {
                Event::Zero { range, .. } => {
                    assert_eq!(range.start(), at);
                    at = range.end();
                }
                Event::Data { .. } => panic!("there is no data"),
                Event::Header(_) | Event::Records(_) | Event::Checkpoint(_) => {}
            }
        }
    }
    (at, decoder.finish().unwrap())
}

#[test]
fn a_hole_of_a_tebibyte_is_quick_and_small() {
    let begin = Instant::now();
    let (image, end) = without_data(&[((1 << 40) + 777, Kind::Hole)]);
    assert_eq!(read(&image), ((1 << 40) + 777, end));
    assert_eq!(end.tally.hole, (1 << 40) + 777);
    assert!(image.len() < 40 << 20, "{} bytes", image.len());
    // Two seconds on a quiet machine without optimisation.
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn zeroes_are_cut_into_few_lengths() {
    let gib: u64 = 1 << 30;
    let mib = 1 << 20;
    let (image, _) = without_data(&[(2 * gib + 5 * mib + 3 * LEAF + 9, Kind::Zero)]);
    let plain: Vec<_> = table_entries(&image)
        .into_iter()
        .map(|(_, plain)| plain)
        .filter(|plain| *plain > 0)
        .collect();
    assert_eq!(plain, [gib, gib, 4 * mib, mib, 3 * LEAF, 9]);
}

/// The root of zeroes is the same whether they were called zero or hole, or had bytes; what was unreadable is not.
#[test]
fn the_root_of_zeroes_does_not_depend_on_how_they_came() {
    let size = 3 * LEAF + 5;
    let whole = without_data(&[(size, Kind::Zero)]).1.root;
    let parts = without_data(&[
        (1000, Kind::Hole),
        (LEAF, Kind::Zero),
        (size - LEAF - 1000, Kind::Hole),
    ]);
    assert_eq!(parts.1.root, whole);
    let (records, plain) = super::volume(&[super::stretch(size, Kind::Hole, 0)]);
    let mut encoder = Encoder::new(&header(size)).0;
    let range = ByteRange::new(0, size).unwrap();
    encoder
        .append(compress_piece(
            range,
            Content::Bytes(&plain),
            &records,
            DEFAULT_LEVEL,
        ))
        .unwrap();
    assert_eq!(encoder.finish(Totals::default()).unwrap().1.root, whole);
    let unreadable = [
        without_data(&[(size, Kind::Unreadable)]).1.root,
        without_data(&[(LEAF, Kind::Unreadable), (size - LEAF, Kind::Zero)])
            .1
            .root,
        without_data(&[(LEAF - 1, Kind::Unreadable), (size - LEAF + 1, Kind::Zero)])
            .1
            .root,
    ];
    assert!(unreadable.iter().all(|root| *root != whole));
    assert_ne!(unreadable[1], unreadable[2]);
    let joined = without_data(&[
        (LEAF / 2, Kind::Unreadable),
        (LEAF / 2, Kind::Unreadable),
        (size - LEAF, Kind::Hole),
    ]);
    assert_eq!(joined.1.root, unreadable[1]);
}

#[test]
fn one_bit_anywhere_is_not_zero() {
    for length in [1, 255, 256, 257, 1000] {
        let mut bytes = vec![0; length];
        assert!(is_zero(&bytes));
        for at in 0..length {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "byte {at} of {length}");
            bytes[at] = 0;
        }
    }
    assert!(is_zero(&[]));
}
