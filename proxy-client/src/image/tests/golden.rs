//! Images that must be readable for ever, byte by byte as they were first written.
//!
//! A change of these bytes is a change of the format: raise the version, add a file, keep the old one. Only if zstd alone writes
//! other bytes, after an update, the file for writing is made anew beside the old one; BLESS=1 in the environment writes it.

use volmap::range::ByteRange;

use super::checkpoints::with_checkpoints;
use super::{
    Parent, Stretch, decode, decode_over, encode, encode_over, encode_with, finish_over, frames, header,
    stretch, volume,
};
use crate::image::{
    BLOCK, Found, ImageError, Kind, LEAF, Lent, ParentImage, ParentRecord, Record, Transport, UnfinishedImage,
};

const V3_INCREMENTAL: &[u8] = include_bytes!("../golden/v3-incremental.vbi.zst");
const V2: &[u8] = include_bytes!("../golden/v2.vbi.zst");
const V2_ROOT: &str = include_str!("../golden/v2.root");
const V2_INCREMENTAL: &[u8] = include_bytes!("../golden/v2-incremental.vbi.zst");
/// The same two as they were written when zstd still compressed the zeroes.
const V2_COMPRESSED: &[u8] = include_bytes!("../golden/v2-zeroes-compressed.vbi.zst");
const V2_COMPRESSED_INCREMENTAL: &[u8] = include_bytes!("../golden/v2-zeroes-compressed-incremental.vbi.zst");
const V1: &[u8] = include_bytes!("../golden/v1.vbi.zst");
const V1_ROOT: &str = include_str!("../golden/v1.root");

/// The volume of every golden image.
fn stretches() -> [Stretch; 5] {
    [
        stretch(5000, Kind::Data, 3),
        stretch(LEAF - 5000, Kind::Hole, 0),
        stretch(LEAF, Kind::Zero, 0),
        stretch(512, Kind::Unreadable, 0),
        stretch(1234, Kind::Data, 9),
    ]
}

#[test]
fn version_1_stays_readable() {
    let (_, plain, end) = encode(&stretches());
    let decoded = decode(V1).unwrap();
    assert!(decoded.plain == plain);
    assert_eq!(decoded.end.root, V1_ROOT.trim().parse().unwrap());
    assert_eq!((decoded.end.root, decoded.end.tally), (end.root, end.tally));
}

#[test]
fn version_2_with_zeroes_that_zstd_compressed_stays_readable() {
    let (image, written) = (decode(V2_COMPRESSED).unwrap(), decode(V2).unwrap());
    assert!(image.plain == written.plain);
    assert_eq!(
        (image.end.root, image.end.tally),
        (written.end.root, written.end.tally)
    );
    let over = |image| decode_over(image, 1000, Some(Box::new(SecondLeaf))).unwrap();
    let (image, written) = (over(V2_COMPRESSED_INCREMENTAL), over(V2_INCREMENTAL));
    assert!(image.plain == written.plain);
    assert_eq!(
        (image.end.root, image.end.tally),
        (written.end.root, written.end.tally)
    );
}

#[test]
fn version_2_stays_as_it_is() {
    let (image, plain, end) = with_checkpoints(&stretches());
    if std::env::var_os("BLESS").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/image/golden");
        std::fs::write(format!("{folder}/v2.vbi.zst"), &image).unwrap();
        std::fs::write(format!("{folder}/v2.root"), format!("{}\n", end.root)).unwrap();
    }
    let decoded = decode(V2).unwrap();
    assert!(decoded.plain == plain);
    assert_eq!(decoded.end.root, V2_ROOT.trim().parse().unwrap());
    assert_eq!(decoded.end, end);
    assert!(image == V2, "the writer writes other bytes than version 2");
}

/// The second leaf of the golden volume, which is zeroes: all that the incremental image of version 2 has of it.
struct SecondLeaf;

impl ParentImage for SecondLeaf {
    fn lend(&mut self, _: ByteRange, _: &mut [u8]) -> Lent {
        unreachable!("whole leaves are the parent's, or nothing")
    }

    fn leaves(&mut self, range: ByteRange) -> Option<Vec<blake3::Hash>> {
        assert_eq!((range.start(), range.len()), (LEAF, LEAF));
        Some(vec![blake3::hash(&[0; 1 << 16])])
    }
}

/// An image that continues the golden one: its first leaf is another, and of its last, which could not be read, everything was.
#[test]
fn incremental_images_of_version_2_stay_readable() {
    let now = [
        stretch(LEAF, Kind::Data, 4),
        stretch(LEAF, Kind::Zero, 0),
        stretch(512 + 1234, Kind::Data, 9),
    ];
    let (_, plain, full) = encode(&now);
    let decoded = decode_over(V2_INCREMENTAL, 1000, Some(Box::new(SecondLeaf))).unwrap();
    assert_eq!(decoded.end.root, full.root, "that of a full image");
    assert!(
        decoded.plain == plain,
        "zeroes stand for what is the parent's, and here they are"
    );
    let parent = decoded.header.parent.unwrap();
    let alone = decode(V2_INCREMENTAL).unwrap_err();
    assert!(matches!(alone, ImageError::ParentMissing { parent: missing } if missing == parent.frozen));
}

/// Of the same volume the first two blocks are the parent's: records, what is stored, and what the volume holds.
fn blocks_over(parent: &[u8]) -> (Vec<Record>, Vec<u8>, Vec<u8>) {
    let (records, stored) = volume(&[
        stretch(2 * BLOCK, Kind::Same, 0),
        stretch(LEAF - 2 * BLOCK, Kind::Data, 4),
        stretch(LEAF, Kind::Same, 0),
        stretch(512 + 1234, Kind::Data, 9),
    ]);
    let mut plain = stored.clone();
    let same = records[0].range.len().try_into().unwrap();
    plain[..same].copy_from_slice(&parent[..same]);
    (records, stored, plain)
}

#[test]
fn incremental_images_of_version_3_stay_as_they_are() {
    let parent = decode(V2).unwrap();
    let (records, stored, plain) = blocks_over(&parent.plain);
    let mut header = header(plain.len() as u64);
    header.parent = Some(ParentRecord {
        frozen: parent.header.frozen,
        root: parent.end.root,
    });
    let lender = || Some(Box::new(Parent(parent.plain.clone())) as Box<dyn ParentImage>);
    let (image, end) = encode_over(&header, &records, &plain, &mut Parent(parent.plain.clone()));
    if std::env::var_os("BLESS").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/image/golden");
        std::fs::write(format!("{folder}/v3-incremental.vbi.zst"), &image).unwrap();
    }
    let mut full = records.clone();
    full.iter_mut().for_each(|record| {
        record.kind = Kind::Data;
        record.receipt.transport = Transport::Nbd;
        record.receipt.lun = 0;
    });
    let full = encode_with(&super::header(plain.len() as u64), &full, &plain, LEAF).1;
    assert_eq!(end.root, full.root, "that of a full image");
    let decoded = decode_over(V3_INCREMENTAL, 1000, lender()).unwrap();
    assert_eq!(decoded.end, end);
    assert!(decoded.plain == stored, "zeroes stand for what is the parent's");
    assert!(
        image == V3_INCREMENTAL,
        "the writer writes other bytes than version 3"
    );
    let alone = decode(V3_INCREMENTAL).unwrap_err();
    assert!(matches!(alone, ImageError::ParentMissing { parent } if parent == header.parent.unwrap().frozen));
}

/// Each frame speaks for itself: what was begun as version 2 is resumed all the same.
#[test]
fn an_incremental_image_of_version_2_is_finished_as_version_3() {
    let parent = decode(V2).unwrap();
    let (records, stored, plain) = blocks_over(&parent.plain);
    let begun = &V2_INCREMENTAL[frames(V2_INCREMENTAL)[0].clone()];
    let mut unfinished = UnfinishedImage::new().over(Some(
        Box::new(Parent(parent.plain.clone())) as Box<dyn ParentImage>
    ));
    unfinished.decoder().push(begun);
    while unfinished.decoder().next_event().unwrap().is_some() {}
    let Found::Unfinished(resumption) = unfinished.finish().unwrap() else {
        panic!("there is a header and no more");
    };
    let (encoder, _) = resumption.into_encoder();
    let mut lender = Parent(parent.plain.clone());
    let (image, end) = finish_over(encoder, begun.to_vec(), &records, &plain, &mut lender);
    let decoded = decode_over(&image, 1000, Some(Box::new(Parent(parent.plain)))).unwrap();
    assert_eq!(decoded.end, end);
    assert!(decoded.plain == stored);
}
