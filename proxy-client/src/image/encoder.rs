//! The writing half: takes pieces in volume order, gives bytes in file order.

use bytes::Bytes;
use uuid::Uuid;

use super::checkpoint::{self, Checkpoint};
use super::end::{End, Tally, Totals};
use super::error::ImageError;
use super::frame::{Key, Payload};
use super::hash::RootHasher;
use super::header::Header;
use super::layout::{self, CHECKSUM, LEAF, frame_entry, in_u32};
use super::limits::{FRAMES_MAX, GROUP_FRAMES_MAX, GROUP_RECORDS_MAX};
use super::piece::{EncodedFrame, EncodedPiece, FrameKind};
use super::record::{self, Transport};
use super::resumption::ResumePoint;
use super::seek_table::{self, TableHasher};

/// Writes one backup image. Holds back at most one group (16 data frames of 1 MiB), and 8 bytes for every frame.
pub struct Encoder {
    key: Key,
    frozen: Uuid,
    incremental: bool,
    size: u64,
    luns: usize,
    /// First byte of the volume that was not appended yet.
    position: u64,
    pending: Vec<EncodedFrame>,
    pending_records: usize,
    groups: u64,
    tally: Tally,
    root: RootHasher,
    table: Vec<u8>,
    table_hasher: TableHasher,
}

impl Encoder {
    /// An encoder, and the first bytes of the image.
    ///
    /// # Panics
    /// The volume is larger than 2^63 - 1 bytes or the descriptive text is larger than 256 KiB.
    pub fn new(header: &Header) -> (Self, Bytes) {
        let frame = header.encode();
        let mut key = [0; 32];
        key.copy_from_slice(&frame[frame.len() - CHECKSUM..]);
        let mut encoder = Self {
            key: Some(key),
            frozen: header.frozen,
            incremental: header.parent.is_some(),
            size: header.size,
            luns: header.luns.len(),
            position: 0,
            pending: Vec::with_capacity(GROUP_FRAMES_MAX),
            pending_records: 0,
            groups: 0,
            tally: Tally::default(),
            root: RootHasher::new(),
            table: Vec::new(),
            table_hasher: TableHasher::new(),
        };
        encoder.enter(frame.len(), 0);
        (encoder, frame)
    }

    /// The encoder of an unfinished image.
    pub(super) fn at(header: &Header, point: ResumePoint, table: Vec<u8>) -> Self {
        Self {
            key: point.key,
            frozen: header.frozen,
            incremental: header.parent.is_some(),
            size: header.size,
            luns: header.luns.len(),
            position: point.position,
            pending: Vec::with_capacity(GROUP_FRAMES_MAX),
            pending_records: 0,
            groups: point.groups,
            tally: point.tally,
            root: point.root,
            table,
            table_hasher: point.table,
        }
    }

    /// First byte of the volume that was not appended yet: where the next piece must begin.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next piece, and gives what can be written now: whole groups, or nothing yet.
    ///
    /// # Errors
    /// [`ImageError::TooManyFrames`]: a seek table cannot list more (128 TiB of data, at least).
    ///
    /// # Panics
    /// Mistakes of the caller: the piece does not begin at [`Self::position`], ends past the volume, or ends off the leaf grid
    /// before the end of the volume; a receipt names a LUN that is not in the header.
    pub fn append(&mut self, piece: EncodedPiece) -> Result<Vec<Bytes>, ImageError> {
        let range = piece.range();
        assert_eq!(
            range.start(),
            self.position,
            "pieces come in volume order, without gap or overlap"
        );
        assert!(
            range.end() < self.size && range.end().is_multiple_of(LEAF) || range.end() == self.size,
            "a piece ends on the leaf grid or with the volume"
        );
        let mut written = Vec::new();
        for frame in piece.into_frames() {
            assert_eq!(frame.range.start(), self.position, "frames tile their piece");
            self.position = frame.range.end();
            if self.pending_records + frame.records.len() > GROUP_RECORDS_MAX {
                self.close_group(&mut written)?;
            }
            self.pending_records += frame.records.len();
            self.pending.push(frame);
            if self.pending.len() == GROUP_FRAMES_MAX {
                self.close_group(&mut written)?;
            }
        }
        Ok(written)
    }

    /// What is held back, as a group that is shorter than it could be: after it a [`Self::checkpoint`] can stand.
    ///
    /// # Errors
    /// [`ImageError::TooManyFrames`].
    pub fn flush(&mut self) -> Result<Vec<Bytes>, ImageError> {
        let mut written = Vec::new();
        self.close_group(&mut written)?;
        Ok(written)
    }

    /// A checkpoint, to be written once everything before it is durable.
    ///
    /// # Panics
    /// Something is held back ([`Self::flush`]).
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Bytes {
        assert!(self.pending.is_empty(), "a checkpoint stands between groups");
        let place = checkpoint::Place {
            groups: self.groups,
            position: self.position,
            frozen: self.frozen,
        };
        let frame = checkpoint::encode(checkpoint, place, layout::version(self.incremental), self.key);
        self.enter(frame.len(), 0);
        frame
    }

    /// The rest of the image: the last group, END and the seek table.
    ///
    /// # Errors
    /// [`ImageError::TooManyFrames`].
    ///
    /// # Panics
    /// Not the whole volume was appended.
    pub fn finish(mut self, totals: Totals) -> Result<(Vec<Bytes>, End), ImageError> {
        assert_eq!(self.position, self.size, "an image holds its whole volume");
        let mut written = Vec::new();
        self.close_group(&mut written)?;
        let (frames, table_length, table_hash) = self.table_hasher.finish();
        let end = End {
            size: self.size,
            groups: self.groups,
            frames,
            tally: self.tally,
            totals,
            root: self.root.finish(self.size),
            table_length,
            table_hash,
        };
        let frame = end.encode(layout::version(self.incremental), self.key);
        self.table
            .extend_from_slice(&seek_table::entry(frame.len() as u64, 0));
        written.push(frame);
        written.push(Bytes::copy_from_slice(&seek_table::frame_header(frames)));
        written.push(self.table.into());
        written.push(Bytes::copy_from_slice(&seek_table::footer(frames)));
        Ok((written, end))
    }

    fn enter(&mut self, compressed: usize, plain: u64) {
        let compressed = compressed as u64;
        self.table
            .extend_from_slice(&seek_table::entry(compressed, plain));
        self.table_hasher.add(compressed, plain);
    }

    /// Writes the pending frames behind their RECORDS frame.
    fn close_group(&mut self, written: &mut Vec<Bytes>) -> Result<(), ImageError> {
        let frames = std::mem::replace(&mut self.pending, Vec::with_capacity(GROUP_FRAMES_MAX));
        self.pending_records = 0;
        let Some(first) = frames.first() else {
            return Ok(());
        };
        // Room for RECORDS, a checkpoint and END too.
        if self.table_hasher.frames() + frames.len() as u64 + 3 > FRAMES_MAX {
            return Err(ImageError::TooManyFrames);
        }
        let mut records = Vec::new();
        for record in frames.iter().flat_map(|frame| &frame.records) {
            assert!(
                record.kind != record::Kind::Same || self.incremental,
                "a full image has no parent"
            );
            assert!(
                record.receipt.transport != Transport::Direct || usize::from(record.receipt.lun) < self.luns,
                "receipts name LUNs of the header"
            );
            record::push_joined(&mut records, *record);
        }
        let records_frame = self.encode_records(first.range.start(), &frames, &records);
        self.groups += 1;
        for record in &records {
            self.tally.add(record);
        }
        self.enter(records_frame.len(), 0);
        written.push(records_frame);
        for frame in frames {
            match frame.kind {
                FrameKind::Data | FrameKind::Same => {
                    frame.leaves.iter().for_each(|leaf| self.root.leaf(leaf))
                }
                FrameKind::Zero => self.root.zero_leaves(frame.range, &frame.records),
            }
            self.enter(frame.bytes.len(), frame.range.len());
            written.push(frame.bytes);
        }
        Ok(())
    }

    fn encode_records(&self, start: u64, frames: &[EncodedFrame], records: &[record::Record]) -> Bytes {
        let data = frames.iter().filter(|frame| frame.kind == FrameKind::Data);
        let leaves: Vec<_> = data.flat_map(|frame| &frame.leaves).collect();
        let variable =
            frames.len() * frame_entry::LEN + records.len() * layout::record::LEN + leaves.len() * CHECKSUM;
        let version = layout::version(self.incremental);
        let mut payload = Payload::new(layout::RECORDS_TAG, version, layout::records::LEN, variable);
        payload.put_u64(layout::records::GROUP, self.groups);
        payload.put_u64(layout::records::START, start);
        payload.put_u64(
            layout::records::LENGTH,
            frames.iter().map(|frame| frame.range.len()).sum(),
        );
        payload.put_u32(layout::records::FRAME_COUNT, in_u32(frames.len() as u64));
        payload.put_u32(layout::records::RECORD_COUNT, in_u32(records.len() as u64));
        payload.put_u32(layout::records::LEAF_COUNT, in_u32(leaves.len() as u64));
        for frame in frames {
            let mut entry = [0; frame_entry::LEN];
            entry[frame_entry::COMPRESSED].copy_from_slice(&in_u32(frame.bytes.len() as u64).to_le_bytes());
            entry[frame_entry::PLAIN].copy_from_slice(&in_u32(frame.range.len()).to_le_bytes());
            entry[frame_entry::KIND.start] = match frame.kind {
                FrameKind::Data => 0,
                FrameKind::Zero => 1,
                FrameKind::Same => 2,
            };
            entry[frame_entry::HASH].copy_from_slice(frame.hash.as_bytes());
            payload.extend(&entry);
        }
        for record in records {
            payload.extend(&record.encode());
        }
        for leaf in leaves {
            payload.extend(leaf.as_bytes());
        }
        payload.seal(self.key)
    }
}
