//! What every block of the metadata begins with: its checksum, and the block that it was written to. The checksum is CRC-32C as the
//! kernel takes it, from all ones and not inverted at the end.

use super::source::{u32_at, u64_at};
use super::{BLOCK_SIZE, MetadataError};

/// Byte offsets that the kernel's `struct node_header` and `struct thin_disk_superblock` share.
mod at {
    pub(super) const CHECKSUM: usize = 0;
    pub(super) const BLOCK: usize = 8;
}

/// Castagnoli's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte: u32 = 0;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

/// Checks what was found as `block`; each kind of block has its own number that its checksum is changed by.
///
/// # Errors
/// [`MetadataError::Checksum`], [`MetadataError::Misplaced`].
pub(super) fn check(block: u64, bytes: &[u8], xor: u32) -> Result<(), MetadataError> {
    assert_eq!(bytes.len(), BLOCK_SIZE, "a whole block");
    if crc32c(&bytes[at::CHECKSUM + 4..]) ^ xor != u32_at(bytes, at::CHECKSUM) {
        return Err(MetadataError::Checksum { block });
    }
    let says = u64_at(bytes, at::BLOCK);
    if says == block {
        Ok(())
    } else {
        Err(MetadataError::Misplaced { block, says })
    }
}

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        let [low, ..] = crc.to_le_bytes();
        crc >> 8 ^ TABLE[usize::from(low ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue_comes_out() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), !0);
    }
}
