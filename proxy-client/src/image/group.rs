//! RECORDS frames as they are read: a group, checked against every rule that it can be checked against by itself.

use std::ops::Range;

use volmap::range::ByteRange;

use super::error::{ImageError, RecordsRule};
use super::frame::{Checked, array_at, u32_at, u64_at};
use super::layout::{self, BLOCK, CHECKSUM, LEAF, SAME_BLOCKS_VERSION, frame_entry, records as field};
use super::limits::{
    DATA_COMPRESSED_MAX, DATA_FRAME_MAX, GROUP_FRAMES_MAX, GROUP_RECORDS_MAX, ZERO_COMPRESSED_MAX,
    ZERO_FRAME_MAX,
};
use super::piece::FrameKind;
use super::record::{self, Kind, Record, Transport};

/// Bytes of a zstd frame at least: magic, descriptor, a block header.
const COMPRESSED_MIN: u32 = 8;

/// Leaf hashes of a group at most.
const GROUP_LEAVES_MAX: usize = GROUP_FRAMES_MAX * (DATA_FRAME_MAX / LEAF) as usize;

/// Bytes of a RECORDS payload at most.
pub(super) const RECORDS_PAYLOAD_MAX: usize = field::LEN
    + GROUP_FRAMES_MAX * frame_entry::LEN
    + GROUP_RECORDS_MAX * layout::record::LEN
    + GROUP_LEAVES_MAX * CHECKSUM
    + CHECKSUM;

/// A data or zero frame that follows.
#[derive(Debug)]
pub(super) struct ExpectedFrame {
    pub(super) range: ByteRange,
    pub(super) kind: FrameKind,
    pub(super) compressed: u32,
    pub(super) hash: blake3::Hash,
    /// Where its leaf hashes stand in [`Group::leaves`].
    pub(super) leaves: Range<usize>,
}

/// A group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) frames: Vec<ExpectedFrame>,
    pub(super) records: Vec<Record>,
    pub(super) leaves: Vec<blake3::Hash>,
}

/// What is known of the image before the group.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    /// Where the RECORDS frame begins.
    pub(super) at: u64,
    /// Number of this group.
    pub(super) group: u64,
    /// First byte of the volume that it holds.
    pub(super) start: u64,
    /// Size of the volume.
    pub(super) size: u64,
    /// LUNs in the header.
    pub(super) luns: usize,
    /// Whether there is a parent.
    pub(super) incremental: bool,
}

impl Group {
    pub(super) fn decode(payload: &Checked<'_>, expected: Expected) -> Result<Self, ImageError> {
        let at = expected.at;
        let broken = |rule| ImageError::Records { at, rule };
        let bytes = payload.bytes;
        if bytes.len() < field::LEN {
            return Err(ImageError::FrameLength { at });
        }
        let found = u64_at(bytes, field::GROUP);
        if found != expected.group {
            return Err(ImageError::GroupOrder {
                at,
                expected: expected.group,
                found,
            });
        }
        let range = ByteRange::new(u64_at(bytes, field::START), u64_at(bytes, field::LENGTH))
            .filter(|range| range.start() == expected.start && range.end() <= expected.size)
            .ok_or(ImageError::GroupRange {
                at,
                expected: expected.start,
            })?;
        if u32_at(bytes, field::RESERVED) != 0 {
            return Err(broken(RecordsRule::Reserved));
        }
        let count = |field| u32_at(bytes, field) as usize;
        let (frames, records, leaves) = (
            count(field::FRAME_COUNT),
            count(field::RECORD_COUNT),
            count(field::LEAF_COUNT),
        );
        if frames == 0
            || frames > GROUP_FRAMES_MAX
            || records > GROUP_RECORDS_MAX
            || leaves > GROUP_LEAVES_MAX
            || bytes.len()
                != field::LEN + frames * frame_entry::LEN + records * layout::record::LEN + leaves * CHECKSUM
        {
            return Err(broken(RecordsRule::Counts));
        }
        let (entries, rest) = bytes[field::LEN..].split_at(frames * frame_entry::LEN);
        let (record_bytes, leaf_bytes) = rest.split_at(records * layout::record::LEN);
        let group = Self {
            frames: decode_frames(entries, range, expected.size).map_err(broken)?,
            records: decode_records(record_bytes, range, expected.luns).map_err(broken)?,
            leaves: leaf_bytes
                .chunks_exact(CHECKSUM)
                .map(|leaf| blake3::Hash::from_bytes(array_at(leaf, 0..CHECKSUM)))
                .collect(),
        };
        group.check(leaves, expected, payload.version).map_err(broken)?;
        Ok(group)
    }

    fn check(&self, leaves: usize, expected: Expected, version: u32) -> Result<(), RecordsRule> {
        if self.frames.last().map_or(0, |frame| frame.leaves.end) != leaves {
            return Err(RecordsRule::Leaves);
        }
        for frame in &self.frames {
            let records = self.records_in(frame.range);
            let (same, other): (Vec<&Record>, Vec<&Record>) =
                records.iter().partition(|record| record.kind == Kind::Same);
            let right = match frame.kind {
                FrameKind::Data => same.is_empty() || version >= SAME_BLOCKS_VERSION,
                FrameKind::Zero => same.is_empty(),
                FrameKind::Same => other.is_empty(),
            };
            if !right || !same.is_empty() && !expected.incremental {
                return Err(RecordsRule::Same);
            }
            let on_blocks = |at: u64| at.is_multiple_of(BLOCK) || at == expected.size;
            if !same
                .iter()
                .all(|record| on_blocks(record.range.start()) && on_blocks(record.range.end()))
            {
                return Err(RecordsRule::SameBlocks);
            }
        }
        for frame in self.frames.iter().filter(|frame| frame.kind == FrameKind::Zero) {
            if self
                .records_in(frame.range)
                .iter()
                .any(|record| record.kind == Kind::Data)
            {
                return Err(RecordsRule::DataInZeroFrame);
            }
        }
        Ok(())
    }

    /// The records of a part of the group.
    pub(super) fn records_in(&self, range: ByteRange) -> Vec<Record> {
        record::clip(&self.records, range)
    }

    /// What of a range is the parent's.
    pub(super) fn same_in(&self, range: ByteRange) -> Vec<ByteRange> {
        record::same(&self.records_in(range)).collect()
    }
}

fn decode_frames(entries: &[u8], range: ByteRange, size: u64) -> Result<Vec<ExpectedFrame>, RecordsRule> {
    let mut frames = Vec::with_capacity(GROUP_FRAMES_MAX);
    let (mut at, mut leaf) = (range.start(), 0);
    for entry in entries.chunks_exact(frame_entry::LEN) {
        if entry[frame_entry::RESERVED] != [0; 3] {
            return Err(RecordsRule::Reserved);
        }
        let (kind, plain_max, compressed_max) = match entry[frame_entry::KIND.start] {
            0 => (FrameKind::Data, DATA_FRAME_MAX, DATA_COMPRESSED_MAX),
            1 => (FrameKind::Zero, ZERO_FRAME_MAX, ZERO_COMPRESSED_MAX),
            2 => (FrameKind::Same, ZERO_FRAME_MAX, ZERO_COMPRESSED_MAX),
            _ => return Err(RecordsRule::FrameKind),
        };
        let compressed = u32_at(entry, frame_entry::COMPRESSED);
        let plain = u64::from(u32_at(entry, frame_entry::PLAIN));
        let frame = ByteRange::new(at, plain)
            .filter(|frame| frame.end() == size || plain.is_multiple_of(LEAF))
            .filter(|_| plain <= plain_max && (COMPRESSED_MIN..=compressed_max).contains(&compressed))
            .ok_or(RecordsRule::FrameSize)?;
        let leaves = match kind {
            FrameKind::Data => leaf..leaf + layout::in_memory(plain.div_ceil(LEAF)),
            FrameKind::Zero | FrameKind::Same => leaf..leaf,
        };
        leaf = leaves.end;
        at = frame.end();
        frames.push(ExpectedFrame {
            range: frame,
            kind,
            compressed,
            hash: blake3::Hash::from_bytes(array_at(entry, frame_entry::HASH)),
            leaves,
        });
    }
    if at == range.end() {
        Ok(frames)
    } else {
        Err(RecordsRule::FramesCover)
    }
}

fn decode_records(bytes: &[u8], range: ByteRange, luns: usize) -> Result<Vec<Record>, RecordsRule> {
    let mut records = Vec::with_capacity(bytes.len() / layout::record::LEN);
    let mut at = range.start();
    for bytes in bytes.chunks_exact(layout::record::LEN) {
        if u64_at(bytes, layout::record::LENGTH) > range.end() - at || at == range.end() {
            return Err(RecordsRule::RecordsCover);
        }
        let record = Record::decode(bytes, at)
            .filter(|record| {
                record.receipt.transport != Transport::Direct || usize::from(record.receipt.lun) < luns
            })
            .ok_or(RecordsRule::Record)?;
        at = record.range.end();
        records.push(record);
    }
    if at == range.end() {
        Ok(records)
    } else {
        Err(RecordsRule::RecordsCover)
    }
}
