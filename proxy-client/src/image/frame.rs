//! The envelope of what is ours: a skippable zstd frame whose payload ends with its own BLAKE3.
//!
//! The checksum of every frame after the HEADER is keyed with the HEADER's checksum, which covers a UUID drawn for
//! this image: a frame of another image never passes.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use bytes::Bytes;

use super::error::{FrameName, ImageError};
use super::layout::{self, CHECKSUM, OUR_MAGIC, SKIPPABLE_HEADER};

/// What keys the checksums of an image: the checksum of its HEADER; `None` for the HEADER itself.
pub(super) type Key = Option<[u8; 32]>;

/// A payload under construction, with room for a fixed part that is filled by field.
pub(super) struct Payload {
    bytes: Vec<u8>,
}

impl Payload {
    pub(super) fn new(tag: [u8; 4], version: u32, fixed: usize, variable: usize) -> Self {
        let mut bytes = Vec::with_capacity(SKIPPABLE_HEADER + fixed + variable + CHECKSUM);
        bytes.resize(SKIPPABLE_HEADER + fixed, 0);
        let mut payload = Self { bytes };
        // Every payload of ours begins alike.
        payload.put(layout::header::TAG, &tag);
        payload.put(layout::header::VERSION, &version.to_le_bytes());
        payload
    }

    pub(super) fn put(&mut self, field: Range<usize>, value: &[u8]) {
        self.bytes[SKIPPABLE_HEADER + field.start..SKIPPABLE_HEADER + field.end].copy_from_slice(value);
    }

    pub(super) fn put_u32(&mut self, field: Range<usize>, value: u32) {
        self.put(field, &value.to_le_bytes());
    }

    pub(super) fn put_u64(&mut self, field: Range<usize>, value: u64) {
        self.put(field, &value.to_le_bytes());
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds the checksum and the skippable header: the frame as it stands in the file.
    pub(super) fn seal(mut self, key: Key) -> Bytes {
        let sum = checksum(key, &self.bytes[SKIPPABLE_HEADER..]);
        self.bytes.extend_from_slice(sum.as_bytes());
        let length = layout::in_u32((self.bytes.len() - SKIPPABLE_HEADER) as u64);
        self.bytes[..4].copy_from_slice(&OUR_MAGIC.to_le_bytes());
        self.bytes[4..SKIPPABLE_HEADER].copy_from_slice(&length.to_le_bytes());
        self.bytes.into()
    }
}

fn checksum(key: Key, bytes: &[u8]) -> blake3::Hash {
    match key {
        Some(key) => blake3::keyed_hash(&key, bytes),
        None => blake3::hash(bytes),
    }
}

/// A payload whose checksum, tag and version are as they should be, without the checksum.
pub(super) struct Checked<'a> {
    /// The payload, from its tag on.
    pub(super) bytes: &'a [u8],
    /// Its checksum.
    pub(super) checksum: [u8; 32],
    /// Its version.
    pub(super) version: u32,
}

/// The tag of a payload whose checksum is right.
pub(super) fn open<'a>(payload: &'a [u8], key: Key, at: u64) -> Result<([u8; 4], Checked<'a>), ImageError> {
    let Some(body) = payload.len().checked_sub(CHECKSUM) else {
        return Err(ImageError::FrameLength { at });
    };
    let (bytes, stated) = payload.split_at(body);
    let sum = checksum(key, bytes);
    if sum.as_bytes() != stated {
        return Err(ImageError::Checksum { at });
    }
    if bytes.len() < layout::header::VERSION.end {
        return Err(ImageError::FrameLength { at });
    }
    let mut tag = [0; 4];
    tag.copy_from_slice(&bytes[layout::header::TAG]);
    let version = u32_at(bytes, layout::header::VERSION);
    if !(layout::OLDEST_VERSION..=layout::VERSION).contains(&version) {
        return Err(ImageError::Version { at, version });
    }
    Ok((
        tag,
        Checked {
            bytes,
            checksum: *sum.as_bytes(),
            version,
        },
    ))
}

/// A frame of ours that stands where no such frame may stand, or of a kind from another version.
pub(super) fn misplaced(tag: [u8; 4], at: u64) -> ImageError {
    match FrameName::of_tag(tag) {
        Some(frame) => ImageError::Misplaced { at, frame },
        None => ImageError::UnknownFrame { at, tag },
    }
}

/// A number of a field that is known to lie in `bytes`.
pub(super) fn u32_at(bytes: &[u8], field: Range<usize>) -> u32 {
    LittleEndian::read_u32(&bytes[field])
}

/// A number of a field that is known to lie in `bytes`.
pub(super) fn u64_at(bytes: &[u8], field: Range<usize>) -> u64 {
    LittleEndian::read_u64(&bytes[field])
}

/// The bytes of a field that is known to lie in `bytes`.
///
/// # Panics
/// The field is not of `N` bytes or lies outside: a mistake of this room.
pub(super) fn array_at<const N: usize>(bytes: &[u8], field: Range<usize>) -> [u8; N] {
    bytes[field]
        .try_into()
        .expect("the field has the size that its layout says")
}
