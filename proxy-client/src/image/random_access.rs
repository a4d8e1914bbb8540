//! One group of an image that is read at any place: what [`super::Outline`] leads to, checked as a [`super::Decoder`] checks it.

use std::ops::Range;

use bytes::Bytes;
use volmap::range::ByteRange;

use super::decoder::check_zstd_frame;
use super::error::ImageError;
use super::frame;
use super::group::{Expected, Group, RECORDS_PAYLOAD_MAX};
use super::hash::{self, RootHasher};
use super::layout::{self, OUR_MAGIC, SKIPPABLE_HEADER, in_memory, part_of};
use super::outline::Outline;
use super::piece::FrameKind;
use super::record::Record;
use super::zero;

/// Bytes of a RECORDS frame at most. A seek table may say anything.
pub const RECORDS_FRAME_MAX: u64 = (SKIPPABLE_HEADER + RECORDS_PAYLOAD_MAX) as u64;

/// Where a group is, as the seek table tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupPlace {
    /// Its number.
    pub number: u64,
    /// First byte of the volume in it.
    pub start: u64,
    /// Where its RECORDS frame begins in the file.
    pub at: u64,
    /// Length of that frame.
    pub records_length: u64,
}

/// A group whose RECORDS frame was read and is right.
#[derive(Debug)]
pub struct OpenGroup {
    group: Group,
    /// Where its first frame begins in the file.
    frames_at: u64,
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// Bytes.
    Data,
    /// Zeroes.
    Zeroes,
    /// The bytes of the parent.
    Same,
}

/// A frame of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FramePlace {
    /// Its bytes of the volume.
    pub range: ByteRange,
    /// What they are.
    pub holds: Holds,
    /// Where it is in the file.
    pub bytes: Range<u64>,
    index: usize,
}

impl Outline {
    /// Opens a group, from the bytes of its RECORDS frame.
    ///
    /// # Errors
    /// They are not the frame that was written.
    pub fn open_group(&self, place: GroupPlace, bytes: &[u8]) -> Result<OpenGroup, ImageError> {
        let at = place.at;
        if bytes.len() < SKIPPABLE_HEADER || !bytes.starts_with(&OUR_MAGIC.to_le_bytes()) {
            return Err(ImageError::FrameMagic { at });
        }
        if frame::u32_at(bytes, 4..SKIPPABLE_HEADER) as usize != bytes.len() - SKIPPABLE_HEADER {
            return Err(ImageError::FrameLength { at });
        }
        let (tag, checked) = frame::open(&bytes[SKIPPABLE_HEADER..], self.key(), at)?;
        if tag != layout::RECORDS_TAG {
            return Err(frame::misplaced(tag, at));
        }
        let header = self.header();
        let group = Group::decode(
            &checked,
            Expected {
                at,
                group: place.number,
                start: place.start,
                size: header.size,
                luns: header.luns.len(),
                incremental: header.parent.is_some(),
            },
        )?;
        Ok(OpenGroup {
            group,
            frames_at: at + bytes.len() as u64,
        })
    }
}

impl OpenGroup {
    /// What it holds.
    pub fn records(&self) -> &[Record] {
        &self.group.records
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.group.frames)
            + size_of_val(&*self.group.records)
            + size_of_val(&*self.group.leaves)
    }

    /// Its frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = FramePlace> {
        let frames = self.group.frames.iter().enumerate();
        frames.scan(self.frames_at, |at, (index, frame)| {
            let bytes = *at..*at + u64::from(frame.compressed);
            *at = bytes.end;
            Some(FramePlace {
                range: frame.range,
                holds: match frame.kind {
                    FrameKind::Data => Holds::Data,
                    FrameKind::Zero => Holds::Zeroes,
                    FrameKind::Same => Holds::Same,
                },
                bytes,
                index,
            })
        })
    }

    /// Leaf hashes of a frame that holds them or whose records tell them: not of one that is the parent's.
    pub fn leaves(&self, place: &FramePlace) -> Vec<blake3::Hash> {
        let frame = &self.group.frames[place.index];
        match frame.kind {
            FrameKind::Data => self.group.leaves[frame.leaves.clone()].to_vec(),
            FrameKind::Zero => {
                let records = self.group.records_in(frame.range);
                let zeroes = vec![0; in_memory(layout::LEAF.min(frame.range.len()))];
                hash::leaves(frame.range)
                    .map(|leaf| hash::zero_leaf(leaf, &zeroes, &records))
                    .collect()
            }
            FrameKind::Same => Vec::new(),
        }
    }

    /// What it holds of a range of the volume.
    pub fn records_in(&self, range: ByteRange) -> Vec<Record> {
        self.group.records_in(range)
    }

    /// What of a range of the volume is the parent's.
    pub fn same_in(&self, range: ByteRange) -> Vec<ByteRange> {
        self.group.same_in(range)
    }

    /// What stands in a data frame, from its bytes in the file: zeroes where it is the parent's. The leaves that hold nothing of the
    /// parent's are checked; [`Self::check_leaf`] is for the others.
    ///
    /// # Errors
    /// They are not those that were written.
    pub fn plain(&self, place: &FramePlace, compressed: &[u8]) -> Result<Bytes, ImageError> {
        let frame = &self.group.frames[place.index];
        let (at, range) = (place.bytes.start, frame.range);
        if blake3::hash(compressed) != frame.hash {
            return Err(ImageError::DataChanged { at, range });
        }
        check_zstd_frame(compressed, frame, at)?;
        let mut plain = Vec::with_capacity(in_memory(range.len()));
        let mut decompressor = zstd::bulk::Decompressor::new().expect("zstd has memory for a context");
        let length = decompressor.decompress_to_buffer(compressed, &mut plain);
        if !length.is_ok_and(|length| length as u64 == range.len()) {
            return Err(ImageError::DataUndecodable { at, range });
        }
        let records = self.group.records_in(range);
        for leaf in hash::leaves(range).filter(|leaf| self.same_in(*leaf).is_empty()) {
            self.check_leaf(place, leaf, &plain[part_of(range, leaf)])?;
        }
        for record in records.iter().filter(|record| record.kind != super::Kind::Data) {
            if !zero::is_zero(&plain[part_of(range, record.range)]) {
                return Err(ImageError::NotZero { range: record.range });
            }
        }
        Ok(plain.into())
    }

    /// Whether the bytes of a leaf of a data frame, with what is the parent's put in, are those that were backed up.
    ///
    /// # Errors
    /// [`ImageError::LeafChanged`].
    pub fn check_leaf(&self, place: &FramePlace, leaf: ByteRange, bytes: &[u8]) -> Result<(), ImageError> {
        let frame = &self.group.frames[place.index];
        let index = in_memory((leaf.start() - frame.range.start()) / layout::LEAF);
        let found = hash::data_leaves(leaf, bytes, &self.group.records_in(leaf));
        if found == self.group.leaves[frame.leaves.clone()][index..=index] {
            Ok(())
        } else {
            Err(ImageError::LeafChanged { range: leaf })
        }
    }
}

/// The root of leaf hashes that come in volume order.
pub struct RootOfLeaves(RootHasher);

impl Default for RootOfLeaves {
    fn default() -> Self {
        Self(RootHasher::new())
    }
}

impl RootOfLeaves {
    /// Adds the hash of the next leaf.
    pub fn push(&mut self, leaf: &blake3::Hash) {
        self.0.leaf(leaf);
    }

    /// The root of a volume of `size` bytes.
    ///
    /// # Panics
    /// There were more or fewer leaves than it has.
    pub fn finish(self, size: u64) -> super::Root {
        self.0.finish(size)
    }
}
