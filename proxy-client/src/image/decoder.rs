//! The reading half: fed with the bytes of a file, gives what it holds, and refuses whatever is not as it was written.
//!
//! Memory is bounded whatever the file says: one frame, one group's records, and what the caller pushed last.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use uuid::Uuid;
use volmap::range::ByteRange;

use super::checkpoint::{self, Checkpoint};
use super::end::{End, Tally};
use super::error::{FrameName, ImageError};
use super::frame::{self, Key};
use super::group::{Expected, ExpectedFrame, Group, RECORDS_PAYLOAD_MAX};
use super::hash::{self, RootHasher};
use super::header::Header;
use super::layout::{self, CHECKSUM, OUR_MAGIC, SKIPPABLE_HEADER, ZSTD_MAGIC, in_memory, part_of};
use super::limits::{FRAMES_MAX, HEADER_TEXT_MAX};
use super::parent::{Lent, ParentImage};
use super::piece::FrameKind;
use super::record::{self, Kind, Record};
use super::resumption::{LastPoint, ResumePoint};
use super::seek_table::{self, TableHasher};
use super::zero;

/// What a decoder found. Data and zero stretches come in volume order and tile the volume.
#[derive(Debug)]
pub enum Event {
    /// The header: always first.
    Header(Box<Header>),
    /// A checkpoint: what had been done when it was written.
    Checkpoint(Box<Checkpoint>),
    /// The records of the group that comes next.
    Records(Vec<Record>),
    /// Bytes of the volume, checked against their leaf hashes.
    Data {
        /// Where they belong.
        range: ByteRange,
        /// The bytes.
        bytes: Bytes,
    },
    /// Bytes of the volume that are zero.
    Zero {
        /// Which.
        range: ByteRange,
        /// Why: never [`Kind::Data`]. [`Kind::Same`] says that they are not zero, but the parent's.
        kind: Kind,
    },
}

enum State {
    Header,
    /// A RECORDS frame or END.
    Frame,
    /// Frames of the group, from this one on.
    Group(Group, usize),
    TableHeader(End),
    Table {
        end: End,
        hasher: Box<blake3::Hasher>,
        left: u64,
    },
    Done(End),
    Failed(ImageError),
}

/// Reads one backup image.
///
/// [`Self::push`] bytes, take [`Self::next_event`] until it gives none, and so on; at the end of the file,
/// [`Self::finish`]: only what it returns says that the image is whole and unchanged.
pub struct Decoder {
    buffer: BytesMut,
    /// Offset in the file of the buffer's first byte.
    at: u64,
    state: State,
    events: VecDeque<Event>,
    key: Key,
    header: Option<Header>,
    size: u64,
    luns: usize,
    position: u64,
    groups: u64,
    tally: Tally,
    root: RootHasher,
    table: TableHasher,
    decompressor: zstd::bulk::Decompressor<'static>,
    parent: Option<Box<dyn ParentImage>>,
    /// Where the image could go on, and its seek table so far, where somebody wants to.
    memory: Option<(Option<ResumePoint>, Vec<u8>)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a file.
    ///
    /// # Panics
    /// zstd has no memory for a context.
    pub fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            at: 0,
            state: State::Header,
            events: VecDeque::new(),
            key: None,
            header: None,
            size: 0,
            luns: 0,
            position: 0,
            groups: 0,
            tally: Tally::default(),
            root: RootHasher::new(),
            table: TableHasher::new(),
            decompressor: zstd::bulk::Decompressor::new().expect("zstd has memory for a context"),
            parent: None,
            memory: None,
        }
    }

    /// The same, for an image that continues another.
    #[must_use]
    pub fn with_parent(self, parent: Option<Box<dyn ParentImage>>) -> Self {
        Self { parent, ..self }
    }

    /// The same, for an image that may be unfinished: it remembers where the image could go on, and 8 bytes for every frame.
    pub(super) fn remembering() -> Self {
        Self {
            memory: Some((None, Vec::new())),
            ..Self::new()
        }
    }

    /// Whether the image is whole, and if it is not, its header, the last place where it could go on, and its seek table up to
    /// there at least.
    pub(super) fn into_last_point(mut self) -> (Result<End, ImageError>, Option<LastPoint>) {
        let memory = self.memory.take();
        let header = self.header.take();
        let point = memory.and_then(|(point, table)| {
            Some(LastPoint {
                header: header?,
                point: point?,
                table,
            })
        });
        (self.ending(), point)
    }

    /// Adds the next bytes of the file.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The file is no good image. The decoder stays failed.
    pub fn next_event(&mut self) -> Result<Option<Event>, ImageError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// The end of the file is here: whether it is also the end of the image.
    ///
    /// # Errors
    /// The file ends too early.
    ///
    /// # Panics
    /// There are events that the caller did not take.
    pub fn finish(mut self) -> Result<End, ImageError> {
        let event = self.next_event()?;
        assert!(event.is_none(), "every event is taken before the end");
        self.ending()
    }

    fn ending(self) -> Result<End, ImageError> {
        match self.state {
            State::Done(end) => Ok(end),
            State::Failed(error) => Err(error),
            _ => Err(ImageError::Truncated {
                at: self.at + self.buffer.len() as u64,
            }),
        }
    }

    /// One step: true when something was done, false when more bytes are needed.
    fn step(&mut self) -> Result<bool, ImageError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => self.header(),
            State::Frame => self.records_or_end(),
            State::Group(group, index) => self.group_frame(group, index),
            State::TableHeader(end) => self.table_header(end),
            State::Table { end, hasher, left } => self.table_body(end, hasher, left),
            State::Done(end) => {
                self.state = State::Done(end);
                if self.buffer.is_empty() {
                    Ok(false)
                } else {
                    Err(ImageError::Trailing { at: self.at })
                }
            }
            State::Failed(error) => Err(error),
        }
    }

    /// The next frame of ours, taken out of the buffer without its skippable header; `None` if it is not whole yet.
    fn our_frame(&mut self, payload_max: usize) -> Result<Option<Bytes>, ImageError> {
        // What is here is checked at once, so that garbage is not taken for a long frame.
        let magic = OUR_MAGIC.to_le_bytes();
        let seen = self.buffer.len().min(magic.len());
        if self.buffer[..seen] != magic[..seen] {
            return Err(ImageError::FrameMagic { at: self.at });
        }
        if self.buffer.len() < SKIPPABLE_HEADER {
            return Ok(None);
        }
        let length = frame::u32_at(&self.buffer, 4..SKIPPABLE_HEADER) as usize;
        if length > payload_max {
            return Err(ImageError::FrameLength { at: self.at });
        }
        if self.buffer.len() < SKIPPABLE_HEADER + length {
            return Ok(None);
        }
        let mut whole = self.take(SKIPPABLE_HEADER + length);
        whole.advance(SKIPPABLE_HEADER);
        Ok(Some(whole))
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.at += length as u64;
        self.buffer.split_to(length).freeze()
    }

    fn header(&mut self) -> Result<bool, ImageError> {
        let payload_max = layout::header::LEN + HEADER_TEXT_MAX + CHECKSUM;
        let payload = self.our_frame(payload_max).map_err(|error| match error {
            ImageError::FrameMagic { .. } => ImageError::NotAnImage,
            other => other,
        })?;
        let Some(payload) = payload else {
            self.state = State::Header;
            return Ok(false);
        };
        // Any zstd file may begin with a skippable frame of this magic: only the tag makes it ours.
        if !payload.starts_with(&layout::HEADER_TAG) && FrameName::of_tag(first_four(&payload)).is_none() {
            return Err(ImageError::NotAnImage);
        }
        let (tag, checked) = frame::open(&payload, None, 0)?;
        if tag != layout::HEADER_TAG {
            return Err(frame::misplaced(tag, 0));
        }
        let header = Header::decode(&checked)?;
        if let Some(parent) = header.parent.filter(|_| self.parent.is_none()) {
            return Err(ImageError::ParentMissing {
                parent: parent.frozen,
            });
        }
        self.key = Some(checked.checksum);
        self.size = header.size;
        self.luns = header.luns.len();
        self.enter(self.at, 0);
        self.header = Some(header.clone());
        self.remember(None);
        self.events.push_back(Event::Header(Box::new(header)));
        self.state = State::Frame;
        Ok(true)
    }

    /// Enters a frame into the seek table.
    fn enter(&mut self, compressed: u64, plain: u64) {
        self.table.add(compressed, plain);
        if let Some((_, table)) = &mut self.memory {
            table.extend_from_slice(&seek_table::entry(compressed, plain));
        }
    }

    /// Notes that the image could go on here: behind the header, or at the checkpoint that was just read.
    fn remember(&mut self, checkpoint: Option<(u64, &Checkpoint)>) {
        let Some((last, _)) = &mut self.memory else { return };
        *last = Some(ResumePoint {
            at: checkpoint.map_or(self.at, |(at, _)| at),
            checkpoint: checkpoint.map(|(_, checkpoint)| checkpoint.clone()),
            key: self.key,
            position: self.position,
            groups: self.groups,
            tally: self.tally,
            root: self.root.clone(),
            table: self.table.clone(),
        });
    }

    fn records_or_end(&mut self) -> Result<bool, ImageError> {
        let at = self.at;
        let Some(payload) = self.our_frame(RECORDS_PAYLOAD_MAX)? else {
            self.state = State::Frame;
            return Ok(false);
        };
        let (tag, checked) = frame::open(&payload, self.key, at)?;
        match tag {
            layout::RECORDS_TAG => {
                let group = Group::decode(
                    &checked,
                    Expected {
                        at,
                        group: self.groups,
                        start: self.position,
                        size: self.size,
                        luns: self.luns,
                        incremental: self.header.as_ref().is_some_and(|header| header.parent.is_some()),
                    },
                )?;
                self.groups += 1;
                for record in &group.records {
                    self.tally.add(record);
                }
                self.enter(self.at - at, 0);
                self.events.push_back(Event::Records(group.records.clone()));
                self.state = State::Group(group, 0);
            }
            layout::CHECKPOINT_TAG => {
                let place = checkpoint::Place {
                    groups: self.groups,
                    position: self.position,
                    frozen: self
                        .header
                        .as_ref()
                        .map_or_else(Uuid::nil, |header| header.frozen),
                };
                let found = checkpoint::decode(&checked, place, at)?;
                // Groups check what they add; checkpoints are the only other frames that a file could be full of.
                if self.table.frames() + 2 > FRAMES_MAX {
                    return Err(ImageError::TooManyFrames);
                }
                self.remember(Some((at, &found)));
                self.enter(self.at - at, 0);
                self.events.push_back(Event::Checkpoint(Box::new(found)));
                self.state = State::Frame;
            }
            layout::END_TAG => {
                let stated = End::decode(&checked, at)?;
                if self.position != self.size {
                    return Err(ImageError::GroupRange {
                        at,
                        expected: self.position,
                    });
                }
                let table = std::mem::replace(&mut self.table, TableHasher::new());
                let (frames, table_length, table_hash) = table.finish();
                let found = End {
                    size: self.size,
                    groups: self.groups,
                    frames,
                    tally: self.tally,
                    // The job's word; nothing in the image can contradict it.
                    totals: stated.totals,
                    root: std::mem::replace(&mut self.root, RootHasher::new()).finish(self.size),
                    table_length,
                    table_hash,
                };
                stated.check_against(&found, self.at)?;
                self.state = State::TableHeader(stated);
            }
            other => return Err(frame::misplaced(other, at)),
        }
        Ok(true)
    }

    fn group_frame(&mut self, group: Group, index: usize) -> Result<bool, ImageError> {
        let Some(expected) = group.frames.get(index) else {
            self.state = State::Frame;
            return Ok(true);
        };
        let length = expected.compressed as usize;
        if self.buffer.len() < length {
            self.state = State::Group(group, index);
            return Ok(false);
        }
        let at = self.at;
        let compressed = self.take(length);
        if blake3::hash(&compressed) != expected.hash {
            return Err(ImageError::DataChanged {
                at,
                range: expected.range,
            });
        }
        check_zstd_frame(&compressed, expected, at)?;
        match expected.kind {
            FrameKind::Data => self.data(&compressed, expected, &group, at)?,
            FrameKind::Zero | FrameKind::Same => self.zeroes(&compressed, expected, &group, at)?,
        }
        self.position = expected.range.end();
        self.enter(u64::from(expected.compressed), expected.range.len());
        self.state = State::Group(group, index + 1);
        Ok(true)
    }

    fn data(
        &mut self,
        compressed: &[u8],
        expected: &ExpectedFrame,
        group: &Group,
        at: u64,
    ) -> Result<(), ImageError> {
        let range = expected.range;
        let mut plain = Vec::with_capacity(in_memory(range.len()));
        let decompressed = self.decompressor.decompress_to_buffer(compressed, &mut plain);
        if !decompressed.is_ok_and(|length| length as u64 == range.len()) {
            return Err(ImageError::DataUndecodable { at, range });
        }
        let records = group.records_in(range);
        for record in records.iter().filter(|record| record.kind != Kind::Data) {
            if !zero::is_zero(&plain[part_of(range, record.range)]) {
                return Err(ImageError::NotZero { range: record.range });
            }
        }
        let mut unchecked = false;
        for same in record::same(&records) {
            let lent = self
                .parent
                .as_mut()
                .map(|parent| parent.lend(same, &mut plain[part_of(range, same)]));
            match lent {
                Some(Lent::Bytes) => {}
                Some(Lent::Unchecked) => unchecked = true,
                Some(Lent::Nothing) | None => return Err(ImageError::ParentUnreadable { range: same }),
            }
        }
        let found = hash::data_leaves(range, &plain, &records);
        let stated = &group.leaves[expected.leaves.clone()];
        for ((leaf, found), stated) in hash::leaves(range).zip(&found).zip(stated) {
            let is_checked = !unchecked || group.same_in(leaf).is_empty();
            if is_checked && found != stated {
                return Err(ImageError::LeafChanged { range: leaf });
            }
            self.root.leaf(stated);
        }
        let plain = Bytes::from(plain);
        // Neighbouring data with different receipts is one stretch for whoever restores it.
        let mut data: Option<ByteRange> = None;
        let slice = |part: ByteRange| plain.slice(part_of(range, part));
        for record in &records {
            if record.kind == Kind::Data {
                data = ByteRange::from_bounds(
                    data.map_or(record.range.start(), ByteRange::start),
                    record.range.end(),
                );
                continue;
            }
            if let Some(range) = data.take() {
                self.events.push_back(Event::Data {
                    range,
                    bytes: slice(range),
                });
            }
            self.events.push_back(Event::Zero {
                range: record.range,
                kind: record.kind,
            });
        }
        if let Some(range) = data {
            self.events.push_back(Event::Data {
                range,
                bytes: slice(range),
            });
        }
        Ok(())
    }

    fn zeroes(
        &mut self,
        compressed: &[u8],
        expected: &ExpectedFrame,
        group: &Group,
        at: u64,
    ) -> Result<(), ImageError> {
        let range = expected.range;
        match zero::holds_zeroes(compressed, range.len()) {
            Ok(true) => {}
            Ok(false) => return Err(ImageError::NotZero { range }),
            Err(_) => return Err(ImageError::DataUndecodable { at, range }),
        }
        let records = group.records_in(range);
        if expected.kind == FrameKind::Same {
            let unreadable = ImageError::ParentUnreadable { range };
            let parent = self.parent.as_mut().ok_or(unreadable.clone())?;
            let leaves = parent.leaves(range).ok_or(unreadable)?;
            if leaves.len() as u64 != range.len().div_ceil(layout::LEAF) {
                return Err(ImageError::ParentUnreadable { range });
            }
            leaves.iter().for_each(|leaf| self.root.leaf(leaf));
        } else {
            self.root.zero_leaves(range, &records);
        }
        self.events.extend(records.iter().map(|record| Event::Zero {
            range: record.range,
            kind: record.kind,
        }));
        Ok(())
    }

    fn table_header(&mut self, end: End) -> Result<bool, ImageError> {
        let expected = seek_table::frame_header(end.frames);
        let seen = self.buffer.len().min(expected.len());
        if self.buffer[..seen] != expected[..seen] {
            return Err(ImageError::TableDiffers { at: self.at });
        }
        if seen < expected.len() {
            self.state = State::TableHeader(end);
            return Ok(false);
        }
        self.take(expected.len());
        self.state = State::Table {
            hasher: Box::new(blake3::Hasher::new()),
            left: end.table_length - expected.len() as u64,
            end,
        };
        Ok(true)
    }

    fn table_body(
        &mut self,
        end: End,
        mut hasher: Box<blake3::Hasher>,
        left: u64,
    ) -> Result<bool, ImageError> {
        let step = left.min(self.buffer.len() as u64);
        let bytes = self.take(in_memory(step));
        hasher.update(&bytes);
        let left = left - step;
        if left > 0 {
            self.state = State::Table { end, hasher, left };
            return Ok(false);
        }
        if *hasher.finalize().as_bytes() != end.table_hash {
            return Err(ImageError::TableDiffers {
                at: self.at - end.table_length,
            });
        }
        self.state = State::Done(end);
        Ok(true)
    }
}

fn first_four(bytes: &[u8]) -> [u8; 4] {
    bytes.first_chunk().copied().unwrap_or_default()
}

/// Whether the bytes are exactly one zstd frame that says it holds the plain length that was recorded: anything else
/// would let stock zstd see another volume than we do.
pub(super) fn check_zstd_frame(
    compressed: &[u8],
    expected: &ExpectedFrame,
    at: u64,
) -> Result<(), ImageError> {
    let whole = zstd::zstd_safe::find_frame_compressed_size(compressed) == Ok(compressed.len());
    let plain = zstd::zstd_safe::get_frame_content_size(compressed);
    if compressed.starts_with(&ZSTD_MAGIC.to_le_bytes())
        && whole
        && matches!(plain, Ok(Some(length)) if length == expected.range.len())
    {
        Ok(())
    } else {
        Err(ImageError::DataUndecodable {
            at,
            range: expected.range,
        })
    }
}
