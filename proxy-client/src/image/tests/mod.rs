//! The format proven on images that are built here.

mod checkpoints;
mod document;
mod forge;
mod golden;
mod limits;
mod round_trip;
mod same_blocks;
mod stock_zstd;
mod tamper;
mod zeroes;

use bytes::Bytes;
use uuid::Uuid;
use volmap::generation::Generation;
use volmap::range::ByteRange;

use super::{
    Content, DEFAULT_LEVEL, Decoder, Encoder, End, Event, Header, ImageError, Kind, LEAF, Lent, LunProof,
    LunRecord, ParentImage, Receipt, Record, StoreRecord, Totals, Transport, compress_piece, part_of,
};

/// A stretch of a volume for a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) length: u64,
    pub(super) kind: Kind,
    /// Data only: what its bytes are made from.
    pub(super) seed: u8,
}

pub(super) fn stretch(length: u64, kind: Kind, seed: u8) -> Stretch {
    Stretch { length, kind, seed }
}

pub(super) fn header(size: u64) -> Header {
    Header {
        image: Uuid::from_u128(0x11),
        frozen: Uuid::from_u128(0x22),
        parent: None,
        size,
        created: 1_795_305_600,
        volume: "vol".into(),
        description: "frozen image: method=reflink strength=crash-consistent".into(),
        stores: vec![
            StoreRecord {
                depth: Some(0),
                identity: "file:vol.img".parse().unwrap(),
            },
            StoreRecord {
                depth: None,
                identity: "id:lun0".parse().unwrap(),
            },
        ],
        luns: vec![
            LunRecord {
                identity: "id:lun0".parse().unwrap(),
                proof: LunProof::Tag,
                path: "/dev/sdx".into(),
            },
            LunRecord {
                identity: "id:lun1".parse().unwrap(),
                proof: LunProof::SampledOnly,
                path: "/dev/sdy".into(),
            },
        ],
        software: "proxy-client test".into(),
        job: None,
    }
}

/// The records and the plain bytes of a volume.
pub(super) fn volume(stretches: &[Stretch]) -> (Vec<Record>, Vec<u8>) {
    let (mut records, mut plain) = (Vec::new(), Vec::new());
    for (index, stretch) in stretches.iter().enumerate() {
        let range = ByteRange::new(plain.len() as u64, stretch.length).unwrap();
        let index = u8::try_from(index % 200).unwrap();
        let receipt = if stretch.kind == Kind::Data {
            let direct = index.is_multiple_of(2);
            Receipt {
                transport: if direct { Transport::Direct } else { Transport::Nbd },
                lun: if direct { u16::from(index % 4 / 2) } else { 0 },
                generation: Generation::from_wire(u64::from(index) + 1),
                rounds: index % 3,
            }
        } else {
            Receipt::unread(Generation::from_wire(9))
        };
        records.push(Record {
            range,
            kind: stretch.kind,
            receipt,
        });
        let end = plain.len() + usize::try_from(stretch.length).unwrap();
        // Odd bytes in a block of a prime length: no byte is zero, and no leaf is like another.
        let block: Vec<u8> = (0..997_u32)
            .map(|at| u8::try_from((at * u32::from(stretch.seed) / 7 + at / 3) % 251).unwrap() | 1)
            .collect();
        while stretch.kind == Kind::Data && plain.len() < end {
            plain.extend_from_slice(&block[..block.len().min(end - plain.len())]);
        }
        plain.resize(end, 0);
    }
    (records, plain)
}

/// Encodes a volume in pieces of `piece` bytes.
pub(super) fn encode_with(header: &Header, records: &[Record], plain: &[u8], piece: u64) -> (Vec<u8>, End) {
    let (mut encoder, first) = Encoder::new(header);
    let mut image = first.to_vec();
    let mut at = 0;
    while at < header.size {
        let range = ByteRange::from_bounds(at, header.size.min(at + piece)).unwrap();
        let records = super::record::clip(records, range);
        let bytes = &plain[usize::try_from(at).unwrap()..usize::try_from(range.end()).unwrap()];
        let content = if records.iter().any(|record| record.kind == Kind::Data) {
            Content::Bytes(bytes)
        } else {
            Content::Zeroes
        };
        for bytes in encoder
            .append(compress_piece(range, content, &records, DEFAULT_LEVEL))
            .unwrap()
        {
            image.extend_from_slice(&bytes);
        }
        at = range.end();
    }
    let totals = Totals {
        moved: 3,
        remapped_direct: 2,
        validations: 1,
    };
    let (rest, end) = encoder.finish(totals).unwrap();
    rest.iter()
        .for_each(|bytes: &Bytes| image.extend_from_slice(bytes));
    (image, end)
}

pub(super) fn encode(stretches: &[Stretch]) -> (Vec<u8>, Vec<u8>, End) {
    let (records, plain) = volume(stretches);
    let (image, end) = encode_with(&header(plain.len() as u64), &records, &plain, 4 << 20);
    (image, plain, end)
}

/// A parent, all of which could be read.
pub(super) struct Parent(pub(super) Vec<u8>);

impl ParentImage for Parent {
    fn lend(&mut self, range: ByteRange, bytes: &mut [u8]) -> Lent {
        let all = ByteRange::new(0, self.0.len() as u64).unwrap();
        bytes.copy_from_slice(&self.0[part_of(all, range)]);
        Lent::Bytes
    }

    fn leaves(&mut self, range: ByteRange) -> Option<Vec<blake3::Hash>> {
        let all = ByteRange::new(0, self.0.len() as u64).unwrap();
        let leaves = self.0[part_of(all, range)].chunks(usize::try_from(LEAF).unwrap());
        Some(leaves.map(blake3::hash).collect())
    }
}

/// Encodes a volume that continues another, a leaf at a time.
pub(super) fn encode_over(
    header: &Header,
    records: &[Record],
    plain: &[u8],
    parent: &mut Parent,
) -> (Vec<u8>, End) {
    let (encoder, first) = Encoder::new(header);
    finish_over(encoder, first.to_vec(), records, plain, parent)
}

/// The same of an image of which nothing but the header is there.
pub(super) fn finish_over(
    mut encoder: Encoder,
    mut image: Vec<u8>,
    records: &[Record],
    plain: &[u8],
    parent: &mut Parent,
) -> (Vec<u8>, End) {
    let all = ByteRange::new(0, plain.len() as u64).unwrap();
    for leaf in super::hash::leaves(all) {
        let records = super::record::clip(records, leaf);
        let leaves = parent.leaves(leaf).unwrap_or_default();
        let content = if records.iter().all(|record| record.kind == Kind::Same) {
            Content::Same(&leaves)
        } else if records
            .iter()
            .any(|record| matches!(record.kind, Kind::Data | Kind::Same))
        {
            Content::Bytes(&plain[part_of(all, leaf)])
        } else {
            Content::Zeroes
        };
        let piece = compress_piece(leaf, content, &records, DEFAULT_LEVEL);
        image.extend(encoder.append(piece).unwrap().concat());
    }
    let (rest, end) = encoder.finish(Totals::default()).unwrap();
    image.extend(rest.concat());
    (image, end)
}

/// What a decoder makes of a file.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) header: Header,
    pub(super) plain: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) end: End,
}

/// Decodes a file that is pushed in steps of `step` bytes.
pub(super) fn decode_in(image: &[u8], step: usize) -> Result<Decoded, ImageError> {
    decode_over(image, step, None)
}

/// The same of an image that continues another.
pub(super) fn decode_over(
    image: &[u8],
    step: usize,
    parent: Option<Box<dyn ParentImage>>,
) -> Result<Decoded, ImageError> {
    let mut decoder = Decoder::new().with_parent(parent);
    let (mut header, mut plain, mut records) = (None, Vec::new(), Vec::new());
    for bytes in image.chunks(step) {
        decoder.push(bytes);
        while let Some(event) = decoder.next_event()? {
            match event {
                Event::Checkpoint(_) => {}
                Event::Header(found) => header = Some(*found),
                Event::Records(found) => found
                    .into_iter()
                    .for_each(|record| super::record::push_joined(&mut records, record)),
                Event::Data { range, bytes } => {
                    assert_eq!(range.start(), plain.len() as u64);
                    assert_eq!(range.len(), bytes.len() as u64);
                    plain.extend_from_slice(&bytes);
                }
                Event::Zero { range, kind } => {
                    assert_ne!(kind, Kind::Data);
                    assert_eq!(range.start(), plain.len() as u64);
                    plain.resize(usize::try_from(range.end()).unwrap(), 0);
                }
            }
        }
    }
    let end = decoder.finish()?;
    Ok(Decoded {
        header: header.expect("a good image has a header"),
        plain,
        records,
        end,
    })
}

pub(super) fn decode(image: &[u8]) -> Result<Decoded, ImageError> {
    decode_in(image, 1 << 20)
}

/// The entries of the seek table, found as a reader of the zstd seekable format finds them: compressed, plain.
pub(super) fn table_entries(image: &[u8]) -> Vec<(u64, u64)> {
    let footer = &image[image.len() - 9..];
    assert_eq!(footer[4..], [0, 0xb1, 0xea, 0x92, 0x8f]);
    let count = u32::from_le_bytes(footer[..4].try_into().unwrap()) as usize;
    let entries = &image[image.len() - 9 - 8 * count..image.len() - 9];
    let number = |bytes: &[u8]| u64::from(u32::from_le_bytes(bytes.try_into().unwrap()));
    entries
        .chunks_exact(8)
        .map(|entry| (number(&entry[..4]), number(&entry[4..])))
        .collect()
}

/// Every frame of an image, the seek table last.
pub(super) fn frames(image: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut at = 0;
    let mut ranges: Vec<_> = table_entries(image)
        .into_iter()
        .map(|(compressed, _)| {
            let start = at;
            at += usize::try_from(compressed).unwrap();
            start..at
        })
        .collect();
    ranges.push(at..image.len());
    ranges
}

/// A small volume with every kind of record, which share leaves and do not.
pub(super) fn small() -> Vec<Stretch> {
    let mut stretches = vec![
        stretch(LEAF + 100, Kind::Data, 3),
        stretch(400, Kind::Unreadable, 0),
        stretch(LEAF - 500, Kind::Zero, 0),
        stretch(2 * LEAF, Kind::Hole, 0),
    ];
    stretches.push(stretch(LEAF, Kind::Data, 5));
    stretches.push(stretch(1000, Kind::Hole, 0));
    stretches.push(stretch(333, Kind::Data, 7));
    stretches
}
