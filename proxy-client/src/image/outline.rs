//! Header and END of an image that can be read at any place, without its data.
//!
//! What an outline says is what the image *claims*: only a [`super::Decoder`] finds out whether its data are whole.

use std::ops::Range;

use super::end::End;
use super::error::ImageError;
use super::frame::{self, u32_at};
use super::header::Header;
use super::layout::{self, CHECKSUM, END_FRAME, OUR_MAGIC, SKIPPABLE_HEADER, TABLE_ENTRY, TABLE_FOOTER};
use super::limits::HEADER_TEXT_MAX;
use super::seek_table;

/// How many bytes of the beginning of a file hold its header at most.
pub const HEADER_FRAME_MAX: usize = SKIPPABLE_HEADER + layout::header::LEN + HEADER_TEXT_MAX + CHECKSUM;

/// How many bytes of the end of a file say where its seek table and END are.
pub const FOOTER: usize = TABLE_FOOTER;

/// Where things are in an image, and the key that its header gives.
pub struct Outline {
    header: Header,
    key: [u8; 32],
    frames: u64,
    table: Range<u64>,
}

impl Outline {
    /// An outline of a file of `length` bytes from its first [`HEADER_FRAME_MAX`] and its last [`FOOTER`] bytes, fewer where
    /// the file has fewer.
    ///
    /// # Errors
    /// The file does not begin with a good header, or does not end with a seek table.
    pub fn new(length: u64, first: &[u8], last: &[u8]) -> Result<Self, ImageError> {
        if first.len() < SKIPPABLE_HEADER || !first.starts_with(&OUR_MAGIC.to_le_bytes()) {
            return Err(ImageError::NotAnImage);
        }
        let payload = u32_at(first, 4..SKIPPABLE_HEADER) as usize;
        if payload > HEADER_FRAME_MAX - SKIPPABLE_HEADER {
            return Err(ImageError::FrameLength { at: 0 });
        }
        let payload = first
            .get(SKIPPABLE_HEADER..SKIPPABLE_HEADER + payload)
            .ok_or(ImageError::Truncated { at: length })?;
        let (tag, checked) = frame::open(payload, None, 0)?;
        if tag != layout::HEADER_TAG {
            return Err(frame::misplaced(tag, 0));
        }
        let header_end = (SKIPPABLE_HEADER + payload.len()) as u64;
        let truncated = ImageError::Truncated { at: length };
        let frames = last
            .last_chunk()
            .and_then(seek_table::frames_of_footer)
            .ok_or(truncated.clone())?;
        let table = length
            .checked_sub(seek_table::frame_length(frames))
            .filter(|table| *table >= header_end + END_FRAME as u64)
            .ok_or(truncated)?;
        Ok(Self {
            header: Header::decode(&checked)?,
            key: checked.checksum,
            frames,
            table: table..length,
        })
    }

    pub(super) fn key(&self) -> frame::Key {
        Some(self.key)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where END and the first bytes of the seek table are.
    pub fn end_range(&self) -> Range<u64> {
        self.table.start - END_FRAME as u64..self.entries_range().start
    }

    /// Where the entries of the seek table are.
    pub fn entries_range(&self) -> Range<u64> {
        self.table.start + SKIPPABLE_HEADER as u64..self.table.end - TABLE_FOOTER as u64
    }

    /// END, from the bytes of [`Self::end_range`], and what checks the bytes of [`Self::entries_range`].
    ///
    /// # Errors
    /// They are not the END of this image.
    pub fn end(&self, bytes: &[u8]) -> Result<(End, TableCheck), ImageError> {
        let at = self.end_range().start;
        let (frame, table) = bytes
            .split_at_checked(END_FRAME)
            .ok_or(ImageError::Truncated { at })?;
        let mut begin = [0; SKIPPABLE_HEADER];
        begin[..4].copy_from_slice(&OUR_MAGIC.to_le_bytes());
        begin[4..].copy_from_slice(&layout::in_u32((END_FRAME - SKIPPABLE_HEADER) as u64).to_le_bytes());
        if !frame.starts_with(&begin) {
            return Err(ImageError::FrameMagic { at });
        }
        let (tag, checked) = frame::open(&frame[SKIPPABLE_HEADER..], Some(self.key), at)?;
        if tag != layout::END_TAG {
            return Err(frame::misplaced(tag, at));
        }
        let end = End::decode(&checked, at)?;
        if end.frames != self.frames
            || end.table_length != self.table.end - self.table.start
            || end.size != self.header.size
            || table != seek_table::frame_header(self.frames)
        {
            return Err(ImageError::TableDiffers { at: self.table.start });
        }
        let check = TableCheck {
            expected: end.table_hash,
            frames: self.frames,
            table_at: self.table.start,
            size: end.size,
            hasher: blake3::Hasher::new(),
            compressed: 0,
            plain: 0,
        };
        Ok((end, check))
    }
}

/// The header at the beginning of a file, if it begins with a good one.
pub fn header_of(first: &[u8]) -> Option<Header> {
    if first.len() < SKIPPABLE_HEADER || !first.starts_with(&OUR_MAGIC.to_le_bytes()) {
        return None;
    }
    let length = u32_at(first, 4..SKIPPABLE_HEADER) as usize;
    let payload = first.get(SKIPPABLE_HEADER..SKIPPABLE_HEADER.checked_add(length)?)?;
    let (tag, checked) = frame::open(payload, None, 0).ok()?;
    (tag == layout::HEADER_TAG).then(|| Header::decode(&checked).ok())?
}

/// Checks the entries of a seek table, fed in order, against END, the place of the table and the size of the volume: so a
/// file that lost or gained anything before its END is found out without reading its data.
pub struct TableCheck {
    expected: [u8; 32],
    frames: u64,
    table_at: u64,
    size: u64,
    hasher: blake3::Hasher,
    compressed: u64,
    plain: u64,
}

impl TableCheck {
    /// Adds the next entries.
    ///
    /// # Panics
    /// `bytes` is not a multiple of 8 bytes long: an entry was cut.
    pub fn push(&mut self, bytes: &[u8]) {
        let (entries, rest) = bytes.as_chunks::<TABLE_ENTRY>();
        assert!(rest.is_empty(), "entries are pushed whole");
        self.hasher.update(bytes);
        for entry in entries {
            self.compressed += u64::from(u32_at(entry, 0..4));
            self.plain += u64::from(u32_at(entry, 4..8));
        }
    }

    /// After the last entry.
    ///
    /// # Errors
    /// The table is not the one of END, or the frames that it lists are not as long as the file before it.
    pub fn finish(mut self) -> Result<(), ImageError> {
        self.hasher.update(&seek_table::footer(self.frames));
        if *self.hasher.finalize().as_bytes() == self.expected
            && self.compressed == self.table_at
            && self.plain == self.size
        {
            Ok(())
        } else {
            Err(ImageError::TableDiffers { at: self.table_at })
        }
    }
}
