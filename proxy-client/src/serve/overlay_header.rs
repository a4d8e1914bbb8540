//! The first page of an overlay (docs/serve-images.md, "The overlay's file").

use std::ops::Range;

use crate::image::Root;

/// Bytes of the header.
pub(super) const LEN: usize = 4096;

/// Bytes of the volume that are in an overlay, or not, as one: what file systems write at least.
pub(super) const UNIT: u64 = 4096;

/// What the bytes of units begin on a multiple of.
const DATA_ALIGNMENT: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"VBIOVER\x01";

const SIZE: Range<usize> = 8..16;
const UNIT_LEN: Range<usize> = 16..24;
const ROOT: Range<usize> = 24..56;
const CHECKSUM: Range<usize> = 4064..4096;

/// What an overlay lies over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OverlayHeader {
    /// Size of the volume.
    pub(super) size: u64,
    /// Root of the image.
    pub(super) root: Root,
}

impl OverlayHeader {
    pub(super) fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[SIZE].copy_from_slice(&self.size.to_le_bytes());
        bytes[UNIT_LEN].copy_from_slice(&UNIT.to_le_bytes());
        bytes[ROOT].copy_from_slice(self.root.as_bytes());
        let checksum = blake3::hash(&bytes[..CHECKSUM.start]);
        bytes[CHECKSUM].copy_from_slice(checksum.as_bytes());
        bytes
    }

    /// `None` where they are not the bytes that were written.
    pub(super) fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let size = u64::from_le_bytes(bytes[SIZE].try_into().ok()?);
        let root = Root::from_bytes(bytes[ROOT].try_into().ok()?);
        let header = Self { size, root };
        (header.encode() == *bytes).then_some(header)
    }

    /// Units of the volume, the last one counted whole.
    pub(super) fn units(&self) -> u64 {
        self.size.div_ceil(UNIT)
    }

    /// Bytes of the bitmap.
    pub(super) fn bitmap_len(&self) -> u64 {
        self.units().div_ceil(8).next_multiple_of(LEN as u64)
    }

    /// Where the bytes of the first unit are.
    pub(super) fn data_at(&self) -> u64 {
        (LEN as u64 + self.bitmap_len()).next_multiple_of(DATA_ALIGNMENT)
    }

    /// Bytes of the file.
    pub(super) fn file_len(&self) -> u64 {
        self.data_at() + self.units() * UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_noticed() {
        let header = OverlayHeader {
            size: 5 << 30,
            root: Root::from_bytes([7; 32]),
        };
        let bytes = header.encode();
        assert_eq!(OverlayHeader::decode(&bytes), Some(header));
        for at in 0..LEN {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(OverlayHeader::decode(&bad), None, "{at}");
        }
        assert_eq!(OverlayHeader::decode(&[0; LEN]), None);
    }

    #[test]
    fn bitmap_and_data_do_not_touch() {
        for size in [0, 1, 4096, 4097, (1 << 40) + 1, i64::MAX as u64 / 2] {
            let header = OverlayHeader {
                size,
                root: Root::from_bytes([0; 32]),
            };
            assert!(header.bitmap_len() * 8 >= header.units());
            assert!(header.data_at() >= LEN as u64 + header.bitmap_len());
            assert!(header.file_len() - header.data_at() >= size);
        }
    }
}
