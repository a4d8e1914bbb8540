//! Each limit at its edge.

use volmap::generation::Generation;
use volmap::range::ByteRange;

use super::{decode, decode_in, encode_with, frames, header, stretch, table_entries, volume};
use crate::image::limits::{DATA_FRAME_MAX, GROUP_FRAMES_MAX, GROUP_RECORDS_MAX, HEADER_TEXT_MAX};
use crate::image::{
    Content, DEFAULT_LEVEL, Decoder, Encoder, ImageError, Kind, LEAF, Receipt, Record, Totals, compress_piece,
};

/// Plain lengths of the frames of a volume that is one stretch.
fn frame_lengths(length: u64, kind: Kind) -> Vec<u64> {
    let (records, plain) = volume(&[stretch(length, kind, 3)]);
    let (image, _) = encode_with(&header(length), &records, &plain, u64::MAX / 2);
    table_entries(&image)
        .into_iter()
        .map(|(_, plain)| plain)
        .filter(|plain| *plain > 0)
        .collect()
}

#[test]
fn data_frames_hold_a_mebibyte() {
    let mib = DATA_FRAME_MAX;
    assert_eq!(frame_lengths(mib - 1, Kind::Data), [mib - 1]);
    assert_eq!(frame_lengths(mib, Kind::Data), [mib]);
    assert_eq!(frame_lengths(mib + 1, Kind::Data), [mib, 1]);
}

#[test]
fn groups_hold_sixteen_frames() {
    for (leaves, groups) in [
        (GROUP_FRAMES_MAX - 1, 1),
        (GROUP_FRAMES_MAX, 1),
        (GROUP_FRAMES_MAX + 1, 2),
    ] {
        let (records, plain) = volume(&[stretch(leaves as u64 * LEAF, Kind::Data, 3)]);
        let (image, end) = encode_with(&header(plain.len() as u64), &records, &plain, LEAF);
        assert_eq!(end.groups, groups);
        assert!(decode(&image).is_ok());
    }
}

/// As many one-byte records as bytes: the worst that a map can be.
#[test]
fn groups_hold_as_many_records_as_a_leaf_has_bytes() {
    let kinds = [Kind::Zero, Kind::Hole];
    let records = |count: u64| -> Vec<Record> {
        (0..count)
            .map(|at| Record {
                range: ByteRange::new(at, 1).unwrap(),
                kind: kinds[usize::try_from(at % 2).unwrap()],
                receipt: Receipt::unread(Generation::NEVER_DIRECT),
            })
            .collect()
    };
    for (size, groups) in [
        (GROUP_RECORDS_MAX as u64 - 1, 1),
        (GROUP_RECORDS_MAX as u64, 1),
        (GROUP_RECORDS_MAX as u64 + 1, 2),
    ] {
        for content in [
            Content::Zeroes,
            Content::Bytes(&vec![0; usize::try_from(size).unwrap()]),
        ] {
            let (mut encoder, first) = Encoder::new(&header(size));
            let mut image = first.to_vec();
            let range = ByteRange::new(0, size).unwrap();
            let piece = compress_piece(range, content, &records(size), DEFAULT_LEVEL);
            let mut written = encoder.append(piece).unwrap();
            let (rest, end) = encoder.finish(Totals::default()).unwrap();
            written.extend(rest);
            written.iter().for_each(|bytes| image.extend_from_slice(bytes));
            assert_eq!((end.groups, end.tally.records), (groups, size));
            assert_eq!(decode_in(&image, image.len()).unwrap().records, records(size));
        }
    }
}

#[test]
fn the_text_of_the_header_is_bounded() {
    let mut header = header(0);
    let (_, first) = Encoder::new(&header);
    let spare = HEADER_TEXT_MAX - (first.len() - 8 - crate::image::layout::header::LEN - 32);
    header.description.push_str(&"x".repeat(spare));
    let (image, _) = encode_with(&header, &[], &[], LEAF);
    assert_eq!(decode(&image).unwrap().header, header);
    header.description.push('x');
    assert!(std::panic::catch_unwind(|| Encoder::new(&header)).is_err());
}

/// A frame that claims to be long is refused by its first eight bytes: nothing is buffered for it.
#[test]
fn long_frames_are_refused_before_they_are_read() {
    let header_max = u32::try_from(crate::image::HEADER_FRAME_MAX - 8).unwrap();
    let (records, plain) = volume(&[stretch(LEAF, Kind::Data, 1)]);
    let (image, _) = encode_with(&header(LEAF), &records, &plain, LEAF);
    let records_max = u32::try_from(crate::image::group::RECORDS_PAYLOAD_MAX).unwrap();
    let end_of_header = u64::try_from(frames(&image)[0].end).unwrap();
    for (before, max, at) in [
        (&[][..], header_max, 0),
        (&image[frames(&image)[0].clone()], records_max, end_of_header),
    ] {
        for (length, refused) in [(max - 1, false), (max, false), (max + 1, true), (u32::MAX, true)] {
            let mut decoder = Decoder::new();
            decoder.push(before);
            decoder.push(&[0x56, 0x2a, 0x4d, 0x18]);
            decoder.push(&length.to_le_bytes());
            let mut result = decoder.next_event();
            while let Ok(Some(_)) = result {
                result = decoder.next_event();
            }
            let expected = if refused {
                Some(ImageError::FrameLength { at })
            } else {
                None
            };
            assert_eq!(result.err(), expected, "{length}");
        }
    }
}
