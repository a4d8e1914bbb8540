//! Names, sizes and places of the fields: docs/image-format.md in code (a test compares the two).

use std::ops::Range;

use volmap::range::ByteRange;

/// The newest format version: that of every frame of ours in an incremental image.
pub(super) const VERSION: u32 = 3;
/// The format version of full images, which nothing of version 3 is in: what reads version 2 reads them.
pub(super) const FULL_VERSION: u32 = 2;
/// The first version of RECORDS whose data frames may hold what is the parent's.
pub(super) const SAME_BLOCKS_VERSION: u32 = 3;
/// The oldest version that is read.
pub(super) const OLDEST_VERSION: u32 = 1;

/// Bytes of a leaf of the hash tree, and the grid on which frames begin.
pub const LEAF: u64 = LEAF_BYTES as u64;
pub(super) const LEAF_BYTES: usize = 64 << 10;

/// Bytes of a block: what is the parent's in a data frame begins and ends on multiples of it, or with the volume.
pub const BLOCK: u64 = 4 << 10;

/// Magic of the skippable frames that hold what is ours.
pub(super) const OUR_MAGIC: u32 = 0x184D_2A56;
/// Magic of the skippable frame that holds the seek table.
pub(super) const TABLE_MAGIC: u32 = 0x184D_2A5E;
/// Last four bytes of the seek table.
pub(super) const TABLE_FOOTER_MAGIC: u32 = 0x8F92_EAB1;
/// Magic of a zstd frame.
pub(super) const ZSTD_MAGIC: u32 = 0xFD2F_B528;

/// Magic and length before the payload of a skippable frame.
pub(super) const SKIPPABLE_HEADER: usize = 8;
/// BLAKE3 at the end of each payload of ours.
pub(super) const CHECKSUM: usize = 32;
/// Entry of the seek table.
pub(super) const TABLE_ENTRY: usize = 8;
/// Footer of the seek table.
pub(super) const TABLE_FOOTER: usize = 9;

/// Tag of the HEADER frame.
pub(super) const HEADER_TAG: [u8; 4] = *b"VBIH";
/// Tag of a RECORDS frame.
pub(super) const RECORDS_TAG: [u8; 4] = *b"VBIR";
/// Tag of a CHECKPOINT frame.
pub(super) const CHECKPOINT_TAG: [u8; 4] = *b"VBIC";
/// Tag of the END frame.
pub(super) const END_TAG: [u8; 4] = *b"VBIE";

/// A run of fields without padding: a range of bytes for each, their total `LEN`, and the list `FIELDS`.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $size:literal,)* }) => {
        $(#[$doc])*
        #[allow(dead_code, reason = "tag and version stand at one place in every payload and are read there")]
        pub(super) mod $name {
            use std::mem::{offset_of, size_of};
            use std::ops::Range;

            // Byte arrays are aligned to 1, so nothing pads this.
            #[repr(C)]
            #[allow(non_snake_case, reason = "only measured, never built")]
            struct Layout { $($field: [u8; $size],)* }

            $(pub(in super::super) const $field: Range<usize> =
                offset_of!(Layout, $field)..offset_of!(Layout, $field) + $size;)*
            pub(in super::super) const LEN: usize = size_of::<Layout>();
            #[cfg(test)]
            pub(in super::super) const FIELDS: &[(&str, Range<usize>)] = &[$((stringify!($field), $field),)*];
        }
    };
}

layout! {
    /// Fixed part of the HEADER payload; the descriptive text and the checksum follow.
    header {
        TAG: 4,
        VERSION: 4,
        IMAGE: 16,
        FROZEN: 16,
        PARENT_FROZEN: 16,
        PARENT_ROOT: 32,
        SIZE: 8,
        CREATED: 8,
        LEAF_SIZE: 4,
        TEXT_LENGTH: 4,
    }
}

layout! {
    /// Fixed part of a RECORDS payload; frame entries, records, leaf hashes and the checksum follow.
    records {
        TAG: 4,
        VERSION: 4,
        GROUP: 8,
        START: 8,
        LENGTH: 8,
        FRAME_COUNT: 4,
        RECORD_COUNT: 4,
        LEAF_COUNT: 4,
        RESERVED: 4,
    }
}

layout! {
    /// One data or zero frame that follows a RECORDS frame.
    frame_entry {
        COMPRESSED: 4,
        PLAIN: 4,
        KIND: 1,
        RESERVED: 3,
        HASH: 32,
    }
}

layout! {
    /// One record.
    record {
        LENGTH: 8,
        GENERATION: 8,
        LUN: 2,
        KIND: 1,
        TRANSPORT: 1,
        ROUNDS: 1,
        RESERVED: 3,
    }
}

layout! {
    /// Fixed part of a CHECKPOINT payload; the text and the checksum follow.
    checkpoint {
        TAG: 4,
        VERSION: 4,
        GROUPS: 8,
        POSITION: 8,
        FROZEN: 16,
        MOVED: 8,
        REMAPPED_DIRECT: 8,
        VALIDATIONS: 8,
        AUDITED: 8,
        TEXT_LENGTH: 4,
    }
}

layout! {
    /// The whole END payload.
    end {
        TAG: 4,
        VERSION: 4,
        SIZE: 8,
        GROUPS: 8,
        FRAMES: 8,
        RECORDS: 8,
        DATA: 8,
        ZERO: 8,
        HOLE: 8,
        UNREADABLE: 8,
        DIRECT: 8,
        NBD: 8,
        MOVED: 8,
        REMAPPED_DIRECT: 8,
        VALIDATIONS: 8,
        ROOT: 32,
        TABLE_LENGTH: 8,
        TABLE_HASH: 32,
        CHECKSUM: 32,
    }
}

/// The format version of the frames of a new image.
pub(super) fn version(incremental: bool) -> u32 {
    if incremental { VERSION } else { FULL_VERSION }
}

/// Bytes of the END frame as it stands in the file.
pub(super) const END_FRAME: usize = SKIPPABLE_HEADER + end::LEN;

/// Bytes of a length that is known to fit the memory of this machine.
pub(super) fn in_memory(length: u64) -> usize {
    usize::try_from(length).expect("lengths are bounded by limits.rs before they are used in memory")
}

/// Where a part of a range is in its bytes.
pub(crate) fn part_of(range: ByteRange, part: ByteRange) -> Range<usize> {
    in_memory(part.start() - range.start())..in_memory(part.end() - range.start())
}

/// A length that limits.rs keeps below 4 GiB.
pub(super) fn in_u32(length: u64) -> u32 {
    u32::try_from(length).expect("lengths in frames are bounded by limits.rs")
}
