//! What is the parent's in data frames, block by block.

use std::error::Error as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use volmap::range::ByteRange;

use super::forge::{Forgery, RECORDS, record};
use super::{
    Decoded, Parent, Stretch, decode_over, encode, encode_over, encode_with, frames, header, stretch, volume,
};
use crate::chain::{Chain, ParentChain};
use crate::error::Error;
use crate::image::layout::{self, CHECKSUM, part_of, record as field};
use crate::image::{BLOCK, End, ImageError, Kind, LEAF, Lent, ParentImage, ParentRecord, RecordsRule};

/// An image with the bytes of its volume.
struct Written {
    image: Vec<u8>,
    plain: Vec<u8>,
    end: End,
}

fn full(stretches: &[Stretch]) -> Written {
    let (image, plain, end) = encode(stretches);
    Written { image, plain, end }
}

/// An image over another.
fn over(parent: &Written, stretches: &[Stretch]) -> Written {
    let (records, mut plain) = volume(stretches);
    let all = ByteRange::new(0, plain.len() as u64).unwrap();
    for same in records.iter().filter(|record| record.kind == Kind::Same) {
        let part = part_of(all, same.range);
        plain[part.clone()].copy_from_slice(&parent.plain[part]);
    }
    let mut header = header(plain.len() as u64);
    header.parent = Some(ParentRecord {
        frozen: header.frozen,
        root: parent.end.root,
    });
    let mut lender = Parent(parent.plain.clone());
    let (image, end) = encode_over(&header, &records, &plain, &mut lender);
    Written { image, plain, end }
}

/// Two leaves, and a third of a block and some.
const TAIL: u64 = BLOCK + 904;

fn first() -> Written {
    full(&[
        stretch(LEAF, Kind::Data, 3),
        stretch(LEAF, Kind::Data, 4),
        stretch(TAIL, Kind::Data, 5),
    ])
}

/// Of its first leaf one block changed, of its last all but the short block.
fn second(first: &Written) -> Written {
    over(
        first,
        &[
            stretch(BLOCK, Kind::Data, 6),
            stretch(2 * LEAF - BLOCK, Kind::Same, 0),
            stretch(BLOCK, Kind::Data, 7),
            stretch(TAIL - BLOCK, Kind::Same, 0),
        ],
    )
}

/// Another block of the first leaf changed; some of the second became zeroes, and one byte of a block could not be read.
fn third(second: &Written) -> Written {
    over(
        second,
        &[
            stretch(3 * BLOCK, Kind::Same, 0),
            stretch(BLOCK, Kind::Data, 8),
            stretch(LEAF - 4 * BLOCK, Kind::Same, 0),
            stretch(BLOCK + 1, Kind::Zero, 0),
            stretch(1, Kind::Unreadable, 0),
            stretch(BLOCK - 2, Kind::Data, 9),
            stretch(LEAF - 2 * BLOCK, Kind::Same, 0),
            stretch(TAIL, Kind::Same, 0),
        ],
    )
}

/// The root of a full image of the same volume.
fn root_of(plain: &[u8], unreadable: Option<ByteRange>) -> super::super::Root {
    let mut stretches = vec![stretch(plain.len() as u64, Kind::Data, 1)];
    if let Some(lost) = unreadable {
        stretches = vec![
            stretch(lost.start(), Kind::Data, 1),
            stretch(lost.len(), Kind::Unreadable, 0),
            stretch(plain.len() as u64 - lost.end(), Kind::Data, 1),
        ];
    }
    let (records, _) = volume(&stretches);
    encode_with(&header(plain.len() as u64), &records, plain, LEAF)
        .1
        .root
}

fn decoded(written: &Written, parent: &Written) -> Decoded {
    decode_over(&written.image, 1000, Some(Box::new(Parent(parent.plain.clone())))).unwrap()
}

fn write(directory: &Path, images: &[&[u8]]) -> Vec<PathBuf> {
    let write = |(index, image): (usize, &&[u8])| {
        let path = directory.join(index.to_string());
        std::fs::write(&path, image).unwrap();
        path
    };
    images.iter().enumerate().map(write).collect()
}

fn cause(error: &Error) -> String {
    error.source().unwrap().to_string()
}

/// What `range` of a chain holds, or why that cannot be told.
fn filled(chain: &Chain, range: ByteRange) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
    chain.fill(range, &mut bytes).map_err(|error| cause(&error))?;
    Ok(bytes)
}

#[test]
fn blocks_that_did_not_change_are_not_stored_and_the_root_is_that_of_a_full_image() {
    let first = first();
    let second = second(&first);
    let third = third(&second);
    let lost = ByteRange::new(LEAF + BLOCK + 1, 1);
    assert_eq!(second.end.root, root_of(&second.plain, None));
    assert_eq!(third.end.root, root_of(&third.plain, lost));
    assert_eq!(
        (second.end.tally.data, third.end.tally.data),
        (2 * BLOCK, 2 * BLOCK - 2)
    );
    assert_eq!(
        (second.end.tally.same, third.end.tally.same),
        (2 * LEAF + TAIL - 2 * BLOCK, 2 * LEAF + TAIL - 3 * BLOCK)
    );
    for (written, parent) in [(&second, &first), (&third, &second)] {
        let decoded = decoded(written, parent);
        assert_eq!(decoded.end, written.end);
        let all = ByteRange::new(0, written.plain.len() as u64).unwrap();
        for record in &decoded.records {
            let part = part_of(all, record.range);
            let expected = match record.kind {
                Kind::Data => written.plain[part.clone()].to_vec(),
                _ => vec![0; part.len()],
            };
            assert!(decoded.plain[part] == expected, "{record:?}");
        }
    }
}

#[test]
fn a_chain_puts_blocks_of_all_its_images_together() {
    let directory = tempfile::tempdir().unwrap();
    let first = first();
    let second = second(&first);
    let third = third(&second);
    let paths = write(directory.path(), &[&third.image, &second.image, &first.image]);
    let chain = Chain::open(&paths).unwrap();
    chain.check().unwrap();
    let size = third.plain.len() as u64;
    let all = ByteRange::new(0, size).unwrap();
    assert!(filled(&chain, all).unwrap() == third.plain);
    let ends = [
        0,
        1,
        BLOCK,
        BLOCK + 1,
        3 * BLOCK + 7,
        LEAF - 1,
        LEAF + BLOCK + 3,
        2 * LEAF + BLOCK,
        size,
    ];
    for (start, end) in ends.iter().flat_map(|start| ends.map(|end| (*start, end))) {
        if let Some(range) = ByteRange::from_bounds(start, end) {
            assert!(
                filled(&chain, range).unwrap() == third.plain[part_of(all, range)],
                "{range}"
            );
        }
    }
    assert_eq!(chain.unreadable().unwrap().bytes, 1);
    let older = Arc::new(Chain::open(&paths[1..]).unwrap());
    let read = decode_over(&third.image, 1 << 20, Some(Box::new(ParentChain(older)))).unwrap();
    assert_eq!(read.end, third.end);
}

/// The blocks are checked with their leaf: nothing of it is given out if the parent is not the one that was continued.
#[test]
fn a_parent_that_gives_other_bytes_is_noticed() {
    let first = first();
    let second = second(&first);
    let leaf = |index| ByteRange::new(index * LEAF, LEAF).unwrap();
    // In a block that is the parent's of a leaf that changed.
    let mut other = first.plain.clone();
    other[usize::try_from(LEAF).unwrap() - 1] ^= 1;
    let error = decode_over(&second.image, 1000, Some(Box::new(Parent(other)))).unwrap_err();
    assert_eq!(error, ImageError::LeafChanged { range: leaf(0) });

    let directory = tempfile::tempdir().unwrap();
    let mut tampered = first.image.clone();
    let frame = frames(&tampered)[2].clone();
    tampered[frame.start + frame.len() / 2] ^= 1;
    let paths = write(directory.path(), &[&second.image, &tampered]);
    let chain = Chain::open(&paths).unwrap();
    chain.check().unwrap();
    let changed = filled(&chain, ByteRange::new(0, 1).unwrap()).unwrap_err();
    assert!(changed.contains("was changed"), "{changed}");
    let older = Arc::new(Chain::open(&paths[1..]).unwrap());
    let error = decode_over(&second.image, 1000, Some(Box::new(ParentChain(older)))).unwrap_err();
    assert!(matches!(error, ImageError::ParentUnreadable { .. }), "{error:?}");

    // Other hashes of a leaf of which most is the parent's, and of one that holds nothing of it.
    let other_hash = |image: &[u8], from_behind: usize| {
        let forged = Forgery::cut(image).change(RECORDS, |payload| {
            let at = payload.len() - from_behind * CHECKSUM;
            payload[at] ^= 1;
        });
        forged.frames.concat()
    };
    // Two of the leaves are in data frames of the second, and all three of the first.
    for (newer, range) in [(Some(other_hash(&second.image, 2)), leaf(0)), (None, leaf(1))] {
        let images = match &newer {
            Some(newer) => [newer, &first.image],
            None => [&second.image, &other_hash(&first.image, 2)],
        };
        let chain = Chain::open(&write(directory.path(), &images.map(Vec::as_slice))).unwrap();
        let changed = filled(&chain, ByteRange::new(range.start() + BLOCK, 1).unwrap()).unwrap_err();
        assert_eq!(changed, ImageError::LeafChanged { range }.to_string());
    }
}

/// Nobody knows what such a byte was, so no leaf hash says that it is the same.
#[test]
fn what_the_parent_could_not_read_is_no_block_of_a_newer_leaf() {
    let first = full(&[
        stretch(3 * BLOCK, Kind::Data, 3),
        stretch(1, Kind::Unreadable, 0),
        stretch(LEAF - 3 * BLOCK - 1, Kind::Data, 3),
    ]);
    let changed = [
        stretch(BLOCK, Kind::Data, 6),
        stretch(LEAF - BLOCK, Kind::Same, 0),
    ];
    let second = over(&first, &changed);
    let directory = tempfile::tempdir().unwrap();
    let paths = write(directory.path(), &[&second.image, &first.image]);
    let chain = Chain::open(&paths).unwrap();
    chain.check().unwrap();
    let lost = ImageError::ParentUnreadable {
        range: ByteRange::new(3 * BLOCK, 1).unwrap(),
    };
    assert_eq!(
        filled(&chain, ByteRange::new(0, 1).unwrap()),
        Err(lost.to_string())
    );
    let older = Arc::new(Chain::open(&paths[1..]).unwrap());
    let error = decode_over(&second.image, 1000, Some(Box::new(ParentChain(older)))).unwrap_err();
    assert!(matches!(error, ImageError::ParentUnreadable { .. }), "{error:?}");
}

/// A host that says that a block is the same has its leaf read by whoever wants to know: zeroes of the parent are not believed for it.
#[test]
fn zeroes_of_the_parent_are_not_taken_for_blocks_that_were_not_zero() {
    let first = full(&[stretch(2 * LEAF, Kind::Hole, 0)]);
    let mut lied_about = first.plain.clone();
    lied_about[usize::try_from(LEAF).unwrap() - 1] = 1;
    let (records, _) = volume(&[
        stretch(BLOCK, Kind::Zero, 0),
        stretch(2 * LEAF - BLOCK, Kind::Same, 0),
    ]);
    let mut header = header(2 * LEAF);
    header.parent = Some(ParentRecord {
        frozen: header.frozen,
        root: first.end.root,
    });
    let (image, _) = encode_over(&header, &records, &lied_about, &mut Parent(first.plain.clone()));
    let directory = tempfile::tempdir().unwrap();
    let chain = Chain::open(&write(directory.path(), &[&image, &first.image])).unwrap();
    chain.check().unwrap();
    let mut parts = Vec::new();
    let all = ByteRange::new(0, 2 * LEAF).unwrap();
    chain
        .walk(all, &mut |part| {
            parts.push((part.range.start(), part.range.end(), part.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        parts,
        [
            (0, BLOCK, Kind::Zero),
            (BLOCK, LEAF, Kind::Data),
            (LEAF, 2 * LEAF, Kind::Hole)
        ]
    );
    let changed = ImageError::LeafChanged {
        range: ByteRange::new(0, LEAF).unwrap(),
    };
    let read = filled(&chain, ByteRange::new(BLOCK, BLOCK).unwrap());
    assert_eq!(read, Err(changed.to_string()));
    let error = decode_over(&image, 1000, Some(Box::new(Parent(first.plain)))).unwrap_err();
    assert_eq!(error, changed);
}

/// A leaf of which the second block is the parent's, and a leaf of zeroes.
fn two_frames() -> (Written, Written) {
    let first = full(&[stretch(2 * LEAF, Kind::Data, 3)]);
    let second = over(
        &first,
        &[
            stretch(BLOCK, Kind::Data, 4),
            stretch(BLOCK, Kind::Same, 0),
            stretch(LEAF - 2 * BLOCK, Kind::Data, 5),
            stretch(LEAF, Kind::Zero, 0),
        ],
    );
    (first, second)
}

#[test]
fn what_is_said_of_blocks_has_to_be_right() {
    let (first, second) = two_frames();
    let error = |change: &dyn Fn(Forgery) -> Forgery| {
        let forged = change(Forgery::of(&second.image)).frames.concat();
        decode_over(&forged, 1 << 20, Some(Box::new(Parent(first.plain.clone()))))
            .map(drop)
            .unwrap_err()
    };
    let rule = |change: &dyn Fn(Forgery) -> Forgery| match error(change) {
        ImageError::Records { rule, .. } => rule,
        other => panic!("{other:?}"),
    };
    let set = |forgery: Forgery, nth, field, value| forgery.set(RECORDS, record(nth), field, value);
    let good = Forgery::of(&second.image).change(RECORDS, |_| {}).frames.concat();
    assert!(decode_over(&good, 1 << 20, Some(Box::new(Parent(first.plain.clone())))).is_ok());
    // They begin and end on multiples of 4 KiB.
    let moved = |by: u64| {
        rule(&|forgery| {
            set(
                set(forgery, 0, field::LENGTH, BLOCK - by),
                1,
                field::LENGTH,
                BLOCK + by,
            )
        })
    };
    assert_eq!(moved(1), RecordsRule::SameBlocks);
    assert_eq!(moved(512), RecordsRule::SameBlocks);
    let longer = |forgery| {
        set(
            set(forgery, 1, field::LENGTH, BLOCK + 1),
            2,
            field::LENGTH,
            LEAF - 2 * BLOCK - 1,
        )
    };
    assert_eq!(rule(&longer), RecordsRule::SameBlocks);
    // Nothing is stored for them.
    let stored = |forgery| {
        set(
            set(set(forgery, 0, field::KIND, 4), 0, field::TRANSPORT, 0),
            0,
            field::LUN,
            0,
        )
    };
    let not_zero = error(&stored);
    assert!(matches!(not_zero, ImageError::NotZero { .. }), "{not_zero:?}");
    let directory = tempfile::tempdir().unwrap();
    let forged = stored(Forgery::of(&second.image)).frames.concat();
    let chain = Chain::open(&write(directory.path(), &[&forged, &first.image])).unwrap();
    let found = filled(&chain, ByteRange::new(0, 1).unwrap()).unwrap_err();
    assert_eq!(found, not_zero.to_string());
    // Zero frames hold none of them, and before version 3 no data frame did.
    assert_eq!(
        rule(&|forgery| set(forgery, 3, field::KIND, 4)),
        RecordsRule::Same
    );
    let version = layout::records::VERSION;
    assert_eq!(
        rule(&|forgery| forgery.set(RECORDS, 0, version.clone(), 2)),
        RecordsRule::Same
    );
    // A same frame holds nothing else.
    let in_same = |forgery: Forgery| {
        let at = layout::records::LEN + layout::frame_entry::LEN;
        forgery.set(RECORDS, at, layout::frame_entry::KIND, 2)
    };
    assert_eq!(rule(&in_same), RecordsRule::Same);
}

/// Without the parent's bytes leaves that hold them are not checked; everything else is.
#[test]
fn a_reader_may_do_without_the_parent() {
    struct Nobody(Lent);
    impl ParentImage for Nobody {
        fn lend(&mut self, _: ByteRange, _: &mut [u8]) -> Lent {
            self.0
        }
        fn leaves(&mut self, _: ByteRange) -> Option<Vec<blake3::Hash>> {
            unreachable!("no whole leaf is the parent's")
        }
    }
    let (_, second) = two_frames();
    let read = |lent| decode_over(&second.image, 1000, Some(Box::new(Nobody(lent))));
    assert_eq!(read(Lent::Unchecked).unwrap().end, second.end);
    let block = ByteRange::new(BLOCK, BLOCK).unwrap();
    assert_eq!(
        read(Lent::Nothing).unwrap_err(),
        ImageError::ParentUnreadable { range: block }
    );
    // Nothing was lent, so it is not taken for the bytes.
    assert!(matches!(
        read(Lent::Bytes).unwrap_err(),
        ImageError::LeafChanged { .. }
    ));
    assert_eq!(second.end.tally.direct + second.end.tally.nbd, LEAF - BLOCK);
}

/// Every image of the longest chain that is continued has a block of the leaf: threads that read have 2 MiB of stack.
#[test]
fn a_leaf_may_be_of_all_images_of_a_long_chain() {
    const IMAGES: usize = 256;
    let mut chain = vec![full(&[stretch(LEAF, Kind::Data, 3)])];
    for nth in 1..IMAGES as u64 {
        let before = nth % 16 * BLOCK;
        let stretches = [
            stretch(before, Kind::Same, 0),
            stretch(BLOCK, Kind::Data, u8::try_from(nth).unwrap()),
            stretch(LEAF - before - BLOCK, Kind::Same, 0),
        ];
        let stretches: Vec<Stretch> = stretches.into_iter().filter(|s| s.length > 0).collect();
        chain.push(over(&chain[chain.len() - 1], &stretches));
    }
    let directory = tempfile::tempdir().unwrap();
    let images: Vec<&[u8]> = chain.iter().rev().map(|written| &*written.image).collect();
    let paths = write(directory.path(), &images);
    let read = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let chain = Chain::open(&paths).unwrap();
        chain.check().unwrap();
        filled(&chain, ByteRange::new(0, LEAF).unwrap())
    });
    assert!(read.unwrap().join().unwrap().unwrap() == chain[IMAGES - 1].plain);
}

/// Blocks of a volume, cut into stretches of a kind; data are of a seed that no other image has.
fn stretches_of(kinds: &[u8], size: u64, seed: u8) -> Vec<Stretch> {
    let mut at = 0;
    let mut stretches = Vec::new();
    for kind in kinds {
        let length = BLOCK.min(size - at);
        at += length;
        match kind {
            // Some of a block only.
            0 if length == BLOCK => stretches.extend([
                stretch(1000, Kind::Hole, 0),
                stretch(BLOCK - 1001, Kind::Data, seed),
                stretch(1, Kind::Unreadable, 0),
            ]),
            0 | 1 => stretches.push(stretch(length, Kind::Data, seed)),
            2 => stretches.push(stretch(length, Kind::Zero, 0)),
            _ => stretches.push(stretch(length, Kind::Same, 0)),
        }
    }
    stretches
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever blocks of whatever images a volume is made of.
    #[test]
    fn every_chain_is_the_volume_that_it_was_made_of(
        images in proptest::collection::vec(proptest::collection::vec(0u8..8, 40), 1..4),
        short in 1..BLOCK,
        from in 0..40 * BLOCK,
        length in 1..20 * BLOCK,
    ) {
        let size = 39 * BLOCK + short;
        let all = ByteRange::new(0, size).unwrap();
        let mut chain = vec![full(&[stretch(size, Kind::Data, 3)])];
        let mut lost = vec![false; 40];
        for (nth, kinds) in images.iter().enumerate() {
            // A leaf with a gap of the parent is not continued block by block, and so is not this one's here.
            let mut kinds = kinds.clone();
            for (leaf, kinds) in kinds.chunks_mut(16).enumerate() {
                if lost.iter().skip(leaf * 16).take(16).any(|lost| *lost) {
                    kinds.iter_mut().for_each(|kind| *kind = (*kind).min(2));
                }
            }
            lost = kinds.iter().enumerate().map(|(block, kind)| *kind == 0 && block < 39).collect();
            let parent = chain.last().unwrap();
            let seed = u8::try_from(nth).unwrap() + 10;
            chain.push(over(parent, &stretches_of(&kinds, size, seed)));
        }
        let newest = chain.last().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files: Vec<&[u8]> = chain.iter().rev().map(|written| &*written.image).collect();
        let paths = write(directory.path(), &files);
        let opened = Chain::open(&paths).unwrap();
        opened.check().unwrap();
        prop_assert!(filled(&opened, all).unwrap() == newest.plain);
        let range = ByteRange::from_bounds(from.min(size - 1), size.min(from + length));
        if let Some(range) = range {
            prop_assert!(filled(&opened, range).unwrap() == newest.plain[part_of(all, range)]);
        }
        prop_assert_eq!(
            opened.unreadable().unwrap().bytes,
            lost.iter().filter(|lost| **lost).count() as u64
        );
        let older = Arc::new(Chain::open(&paths[1..]).unwrap());
        let read = decode_over(&newest.image, 1 << 16, Some(Box::new(ParentChain(older)))).unwrap();
        prop_assert_eq!(read.end, newest.end);
    }
}
