//! Whatever a medium does to an image is noticed.

use uuid::Uuid;

use super::{Stretch, decode, encode, encode_with, frames, header, small, stretch, volume};
use crate::image::{ImageError, Kind, LEAF};

/// Every kind of frame and record in as few bytes as possible.
fn tiny() -> Vec<Stretch> {
    vec![
        stretch(200, Kind::Data, 3),
        stretch(100, Kind::Unreadable, 0),
        stretch(LEAF - 300, Kind::Zero, 0),
        stretch(50, Kind::Hole, 0),
    ]
}

/// A volume of 20 leaves with data in each, a frame to a leaf: two groups.
fn two_groups(image: u128) -> Vec<u8> {
    let stretches: Vec<_> = (0..20).map(|seed| stretch(LEAF, Kind::Data, seed + 1)).collect();
    let (records, plain) = volume(&stretches);
    let mut header = header(plain.len() as u64);
    header.image = Uuid::from_u128(image);
    encode_with(&header, &records, &plain, LEAF).0
}

#[test]
fn every_prefix_is_refused() {
    for stretches in [vec![], tiny(), small()] {
        let (image, ..) = encode(&stretches);
        for length in 0..image.len() {
            let error = decode(&image[..length]).unwrap_err();
            assert_eq!(error, ImageError::Truncated { at: length as u64 });
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (mut image, ..) = encode(&tiny());
    for at in 0..image.len() {
        for bit in 0..8 {
            image[at] ^= 1 << bit;
            assert!(decode(&image).is_err(), "bit {bit} of byte {at}");
            image[at] ^= 1 << bit;
        }
    }
    assert!(decode(&image).is_ok());
}

#[test]
fn every_changed_byte_of_a_larger_image_is_noticed() {
    let (mut image, ..) = encode(&small());
    for at in 0..image.len() {
        let old = image[at];
        image[at] = old.wrapping_add(u8::try_from(at % 255).unwrap() + 1);
        assert!(decode(&image).is_err(), "byte {at}");
        image[at] = old;
    }
}

#[test]
fn every_byte_left_out_or_doubled_is_noticed() {
    let (image, ..) = encode(&tiny());
    for at in 0..image.len() {
        let mut other = image.clone();
        other.remove(at);
        assert!(decode(&other).is_err(), "byte {at} left out");
        other.insert(at, image[at]);
        other.insert(at, image[at]);
        assert!(decode(&other).is_err(), "byte {at} doubled");
    }
}

#[test]
fn whatever_follows_is_noticed() {
    let (image, ..) = encode(&tiny());
    let at = image.len() as u64;
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for more in [&[0][..], &skippable, &image] {
        let error = decode(&[&image, more].concat()).unwrap_err();
        assert_eq!(error, ImageError::Trailing { at });
    }
}

/// Frames of `image` in another order.
fn arranged(image: &[u8], order: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let frames = frames(image);
    order
        .into_iter()
        .flat_map(|index| image[frames[index].clone()].to_vec())
        .collect()
}

#[test]
fn every_frame_left_out_repeated_or_swapped_is_noticed() {
    let image = two_groups(1);
    let count = frames(&image).len();
    // HEADER, RECORDS + 16, RECORDS + 4, END, table.
    assert_eq!(count, 1 + 17 + 5 + 2);
    assert_eq!(arranged(&image, 0..count), image);
    for frame in 0..count {
        let without = (0..count).filter(|index| *index != frame);
        assert!(decode(&arranged(&image, without)).is_err(), "{frame} left out");
        let twice = (0..=frame).chain(frame..count);
        assert!(decode(&arranged(&image, twice)).is_err(), "{frame} repeated");
        for other in frame + 1..count {
            let mut order: Vec<_> = (0..count).collect();
            order.swap(frame, other);
            assert!(
                decode(&arranged(&image, order)).is_err(),
                "{frame} and {other} swapped"
            );
        }
    }
}

#[test]
fn whole_groups_left_out_repeated_or_swapped_are_noticed() {
    let image = two_groups(1);
    let (first, second, rest) = (1..18, 18..23, 23..25);
    let group_order = |order: Vec<u8>| matches!(decode(&order).unwrap_err(), ImageError::GroupOrder { .. });
    let chain = |a: [std::ops::Range<usize>; 3]| arranged(&image, (0..1).chain(a.into_iter().flatten()));
    assert!(group_order(chain([second.clone(), first.clone(), rest.clone()])));
    assert!(group_order(chain([second.clone(), second.clone(), rest.clone()])));
    assert!(group_order(chain([first.clone(), first.clone(), rest.clone()])));
    assert!(matches!(
        decode(&chain([first, rest, 0..0])).unwrap_err(),
        ImageError::GroupRange { .. }
    ));
}

/// Two images of the same volume, equal but for the UUID drawn for each.
#[test]
fn frames_of_another_image_are_noticed() {
    let (image, other) = (two_groups(1), two_groups(2));
    let ranges = frames(&image);
    assert_eq!(ranges, frames(&other));
    let table = ranges.len() - 1;
    for (index, range) in ranges.iter().enumerate() {
        let mut mixed = image.clone();
        mixed[range.clone()].copy_from_slice(&other[range.clone()]);
        // Equal data frames and tables are interchangeable; what is ours never is.
        let is_data = (2..18).contains(&index) || (19..23).contains(&index) || index == table;
        assert_eq!(mixed == image, is_data);
        assert_eq!(decode(&mixed).is_ok(), is_data, "frame {index}");
    }
}

#[test]
fn other_files_are_no_images() {
    let other_skippable = [&[0x56, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"abcd"].concat();
    let zstd = zstd::encode_all(&b"hello"[..], 1).unwrap();
    for file in [&b"hello, world"[..], &zstd, &other_skippable, &[0; 100]] {
        assert_eq!(decode(file).unwrap_err(), ImageError::NotAnImage);
    }
}
