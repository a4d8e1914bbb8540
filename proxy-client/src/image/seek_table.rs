//! The seek table in the zstd seekable format: the last frame, by which any reader of that format finds its way.

use super::layout::{
    self, END_FRAME, SKIPPABLE_HEADER, TABLE_ENTRY, TABLE_FOOTER, TABLE_FOOTER_MAGIC, TABLE_MAGIC,
};
use super::limits::FRAMES_MAX;

/// An entry: compressed and plain length of a frame; plain 0 for skippable frames.
pub(super) fn entry(compressed: u64, plain: u64) -> [u8; TABLE_ENTRY] {
    let mut bytes = [0; TABLE_ENTRY];
    bytes[..4].copy_from_slice(&layout::in_u32(compressed).to_le_bytes());
    bytes[4..].copy_from_slice(&layout::in_u32(plain).to_le_bytes());
    bytes
}

/// Magic and payload length of a table of `frames` entries.
pub(super) fn frame_header(frames: u64) -> [u8; SKIPPABLE_HEADER] {
    let mut bytes = [0; SKIPPABLE_HEADER];
    bytes[..4].copy_from_slice(&TABLE_MAGIC.to_le_bytes());
    let payload = frame_length(frames) - SKIPPABLE_HEADER as u64;
    bytes[4..].copy_from_slice(&layout::in_u32(payload).to_le_bytes());
    bytes
}

/// The footer: number of frames, no checksums in the entries, magic.
pub(super) fn footer(frames: u64) -> [u8; TABLE_FOOTER] {
    let mut bytes = [0; TABLE_FOOTER];
    bytes[..4].copy_from_slice(&layout::in_u32(frames).to_le_bytes());
    bytes[5..].copy_from_slice(&TABLE_FOOTER_MAGIC.to_le_bytes());
    bytes
}

/// Bytes of the whole frame.
pub(super) fn frame_length(frames: u64) -> u64 {
    (SKIPPABLE_HEADER + TABLE_FOOTER) as u64 + frames * TABLE_ENTRY as u64
}

/// What the table of the frames seen so far hashes to, without keeping it.
#[derive(Clone)]
pub(super) struct TableHasher {
    hasher: blake3::Hasher,
    frames: u64,
}

impl TableHasher {
    pub(super) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            frames: 0,
        }
    }

    pub(super) fn add(&mut self, compressed: u64, plain: u64) {
        self.hasher.update(&entry(compressed, plain));
        self.frames += 1;
    }

    /// Number of frames with END, length of the table and BLAKE3 of its payload, once END's own entry is added. END's
    /// length is fixed, so END can state this.
    pub(super) fn finish(mut self) -> (u64, u64, [u8; 32]) {
        self.add(END_FRAME as u64, 0);
        self.hasher.update(&footer(self.frames));
        (
            self.frames,
            frame_length(self.frames),
            *self.hasher.finalize().as_bytes(),
        )
    }

    pub(super) fn frames(&self) -> u64 {
        self.frames
    }
}

/// Number of frames that the last nine bytes of a file speak of; `None` if they are no footer that we write.
pub(super) fn frames_of_footer(bytes: &[u8; TABLE_FOOTER]) -> Option<u64> {
    let frames = u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    (frames <= FRAMES_MAX && *bytes == footer(frames)).then_some(frames)
}
