//! Pieces: stretches of a volume on their way into an image, compressed and hashed one by one, on any thread.

use std::borrow::Cow;

use bytes::Bytes;
use volmap::range::ByteRange;

use super::hash;
use super::layout::{BLOCK, LEAF, in_memory, part_of};
use super::limits::{DATA_FRAME_MAX, GROUP_RECORDS_MAX};
use super::record::{self, Kind, Record};
use super::zero;

/// The zstd level that is used unless the operator asks for another: the fastest with a good ratio.
pub const DEFAULT_LEVEL: i32 = 1;

/// The bytes of a piece.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// All of them, zeroes included, and what is as in the parent: it counts for the leaf hashes, and is not stored.
    Bytes(&'a [u8]),
    /// Nothing but zeroes; no record of the piece is of data.
    Zeroes,
    /// The bytes of the parent, whose leaf hashes these are; every record of the piece says so.
    Same(&'a [blake3::Hash]),
}

/// A kind of frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FrameKind {
    Data,
    Zero,
    Same,
}

/// A compressed frame with everything that its group says of it.
#[derive(Debug)]
pub(super) struct EncodedFrame {
    pub(super) range: ByteRange,
    pub(super) kind: FrameKind,
    pub(super) bytes: Bytes,
    pub(super) hash: blake3::Hash,
    /// Of data frames, and, from the parent, of those that are the same; those of zero frames follow from the records.
    pub(super) leaves: Vec<blake3::Hash>,
    pub(super) records: Vec<Record>,
}

/// A stretch of a volume, compressed and hashed: what [`super::Encoder::append`] takes.
#[derive(Debug)]
pub struct EncodedPiece {
    range: ByteRange,
    frames: Vec<EncodedFrame>,
}

impl EncodedPiece {
    /// Bytes of the volume.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// The compressed bytes of each frame. They may wait elsewhere, and have to be back before the piece is written.
    pub fn bytes_mut(&mut self) -> impl Iterator<Item = &mut Bytes> {
        self.frames.iter_mut().map(|frame| &mut frame.bytes)
    }

    /// Whether every frame has the bytes that it was given.
    pub fn is_whole(&self) -> bool {
        let mut frames = self.frames.iter();
        frames.all(|frame| blake3::hash(&frame.bytes) == frame.hash)
    }

    /// Bytes of memory that the piece takes beside the compressed ones.
    pub fn len_beside(&self) -> u64 {
        let of = |frame: &EncodedFrame| {
            size_of_val(frame) + size_of_val(&*frame.leaves) + size_of_val(&*frame.records)
        };
        self.frames.iter().map(|frame| of(frame) as u64).sum()
    }

    pub(super) fn into_frames(self) -> Vec<EncodedFrame> {
        self.frames
    }
}

/// Compresses and hashes a stretch of a volume that begins on the grid of 64 KiB leaves, and ends on it or with the
/// volume. `records` tile the stretch in order; a data frame is made of each MiB of it, or a zero frame of up to 1 GiB
/// where there are only zeroes. Pure and without shared state: run as many as there are processors.
///
/// # Panics
/// Mistakes of the caller: the stretch begins off the grid, the records do not tile it, there are more or fewer bytes
/// than it is long, a record that is not of data lies over bytes that are not zero, or its receipt says it was read.
pub fn compress_piece(
    range: ByteRange,
    content: Content<'_>,
    records: &[Record],
    level: i32,
) -> EncodedPiece {
    assert!(
        range.start().is_multiple_of(LEAF),
        "a piece begins on the leaf grid"
    );
    assert!(record::tile(records, range), "records tile their piece");
    assert!(
        records.iter().all(Record::is_consistent),
        "data was read, everything else was not"
    );
    let frames = match content {
        Content::Bytes(bytes) => data_frames(range, bytes, records, level),
        Content::Zeroes => zero_frames(range, records),
        Content::Same(leaves) => same_frames(range, leaves, records),
    };
    EncodedPiece { range, frames }
}

fn data_frames(range: ByteRange, bytes: &[u8], records: &[Record], level: i32) -> Vec<EncodedFrame> {
    assert_eq!(bytes.len() as u64, range.len(), "a piece has all its bytes");
    for record in records {
        let part = part_of(range, record.range);
        assert!(
            matches!(record.kind, Kind::Data | Kind::Same) || zero::is_zero(&bytes[part]),
            "what is recorded as {:?} is zero",
            record.kind
        );
    }
    let mut compressor = zstd::bulk::Compressor::new(level).expect("zstd has memory for a context");
    compressor
        .include_checksum(true)
        .expect("zstd knows content checksums");
    let mut frames = Vec::new();
    let mut at = range.start();
    while at < range.end() {
        let (frame, records) = fitting(at, range.end(), records, |left| left.min(DATA_FRAME_MAX));
        let plain = &bytes[part_of(range, frame)];
        let leaves = hash::data_leaves(frame, plain, &records);
        let compressed: Bytes = compressor
            .compress(&without_same(frame, plain, &records))
            .expect("zstd compresses into a buffer for the worst case")
            .into();
        frames.push(EncodedFrame {
            range: frame,
            kind: FrameKind::Data,
            hash: blake3::hash(&compressed),
            leaves,
            bytes: compressed,
            records,
        });
        at = frame.end();
    }
    frames
}

/// What is stored of the bytes of a frame: zeroes stand for what is the parent's.
fn without_same<'a>(frame: ByteRange, plain: &'a [u8], records: &[Record]) -> Cow<'a, [u8]> {
    let mut stored = Cow::Borrowed(plain);
    for same in record::same(records) {
        assert!(
            same.start().is_multiple_of(BLOCK)
                && (same.end().is_multiple_of(BLOCK) || same.end() == frame.end()),
            "what is the parent's in a data frame is whole blocks"
        );
        stored.to_mut()[part_of(frame, same)].fill(0);
    }
    stored
}

fn zero_frames(range: ByteRange, records: &[Record]) -> Vec<EncodedFrame> {
    assert!(
        records
            .iter()
            .all(|record| !matches!(record.kind, Kind::Data | Kind::Same)),
        "data has bytes"
    );
    let mut frames = Vec::new();
    let mut at = range.start();
    while at < range.end() {
        let (frame, records) = fitting(at, range.end(), records, zero::first_length);
        let compressed = zero::frame(frame.len());
        frames.push(EncodedFrame {
            range: frame,
            kind: FrameKind::Zero,
            bytes: compressed.bytes,
            hash: compressed.hash,
            leaves: Vec::new(),
            records,
        });
        at = frame.end();
    }
    frames
}

/// Zeroes stand for what is the parent's, so that the frames still tile the volume.
fn same_frames(range: ByteRange, leaves: &[blake3::Hash], records: &[Record]) -> Vec<EncodedFrame> {
    assert!(
        records.iter().all(|record| record.kind == Kind::Same),
        "what is the parent's is nothing else"
    );
    assert_eq!(
        leaves.len() as u64,
        range.len().div_ceil(LEAF),
        "every leaf of the parent has its hash"
    );
    let mut frames = Vec::new();
    let (mut at, mut leaves) = (range.start(), leaves);
    while at < range.end() {
        let (frame, records) = fitting(at, range.end(), records, zero::first_length);
        let compressed = zero::frame(frame.len());
        let (own, rest) = leaves.split_at(in_memory(frame.len().div_ceil(LEAF)));
        frames.push(EncodedFrame {
            range: frame,
            kind: FrameKind::Same,
            bytes: compressed.bytes,
            hash: compressed.hash,
            leaves: own.to_vec(),
            records,
        });
        leaves = rest;
        at = frame.end();
    }
    frames
}

/// The next frame of at most `first_length(end - at)` bytes, shorter where its records would be too many for a group.
fn fitting(
    at: u64,
    end: u64,
    records: &[Record],
    first_length: impl Fn(u64) -> u64,
) -> (ByteRange, Vec<Record>) {
    let mut length = first_length(end - at);
    loop {
        let range = ByteRange::new(at, length).expect("frames are not empty");
        let clipped = record::clip(records, range);
        // A leaf always fits: it cannot hold more records than bytes.
        if clipped.len() <= GROUP_RECORDS_MAX || length <= LEAF {
            return (range, clipped);
        }
        length = first_length((length / 2).next_multiple_of(LEAF));
    }
}
