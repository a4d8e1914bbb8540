//! Why a file is no good backup image.

use std::fmt;

use uuid::Uuid;
use volmap::range::ByteRange;

use super::layout;

/// A frame of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameName {
    /// The first frame.
    Header,
    /// The frame before a group of data frames.
    Records,
    /// A frame between groups: what was durable.
    Checkpoint,
    /// The last frame before the seek table.
    End,
}

impl FrameName {
    pub(super) fn of_tag(tag: [u8; 4]) -> Option<Self> {
        match tag {
            layout::HEADER_TAG => Some(Self::Header),
            layout::RECORDS_TAG => Some(Self::Records),
            layout::CHECKPOINT_TAG => Some(Self::Checkpoint),
            layout::END_TAG => Some(Self::End),
            _ => None,
        }
    }
}

impl fmt::Display for FrameName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "HEADER",
            Self::Records => "RECORDS",
            Self::Checkpoint => "CHECKPOINT",
            Self::End => "END",
        })
    }
}

/// A count of END that is compared with what was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields of END, docs/image-format.md section 6")]
pub enum Count {
    Size,
    Groups,
    Frames,
    Records,
    Data,
    Zero,
    Hole,
    Unreadable,
    Direct,
    Nbd,
}

/// A field of a RECORDS frame that breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordsRule {
    /// No frame, or more frames or records than limits.rs allows, or counts that do not add up to the payload.
    Counts,
    /// A frame that is empty, too large, or ends off the leaf grid before the volume ends.
    FrameSize,
    /// An unknown kind of frame.
    FrameKind,
    /// The frames do not add up to the range.
    FramesCover,
    /// The records do not add up to the range, or one is empty.
    RecordsCover,
    /// An unknown kind, transport or LUN, or a transport that does not go with the kind.
    Record,
    /// What is the parent's in a full image, in a zero frame, or, in versions before 3, in a data frame; or something else in a same frame.
    Same,
    /// What is the parent's in a data frame does not begin and end on multiples of 4 KiB.
    SameBlocks,
    /// Data in a zero frame.
    DataInZeroFrame,
    /// The leaf hashes are not as many as the leaves of the data frames.
    Leaves,
    /// A reserved field is not 0.
    Reserved,
}

/// Why a file is no good backup image. Offsets are bytes of the file; ranges are bytes of the volume.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    // Cannot be decoded.
    /// It does not begin like one.
    #[error("this is not a backup image")]
    NotAnImage,
    /// It ends before its end.
    #[error("the image is cut off at byte {at}")]
    Truncated {
        /// Where the file ends.
        at: u64,
    },
    /// No frame that belongs here begins here.
    #[error("no frame of the image begins at byte {at}")]
    FrameMagic {
        /// Where a frame should begin.
        at: u64,
    },
    /// A frame is shorter or longer than it can be.
    #[error("the frame at byte {at} has an impossible length")]
    FrameLength {
        /// Where the frame begins.
        at: u64,
    },
    /// A frame of ours was changed or belongs to another image.
    #[error("the frame at byte {at} was changed or belongs to another image")]
    Checksum {
        /// Where the frame begins.
        at: u64,
    },
    /// The text of the header is not as this version writes it.
    #[error("the descriptive text of the header cannot be read")]
    HeaderText,
    /// A data frame is not the one that was written.
    #[error("the frame at byte {at} that holds bytes {range} of the volume was changed")]
    DataChanged {
        /// Where the frame begins.
        at: u64,
        /// What it holds.
        range: ByteRange,
    },
    /// A data frame is no zstd frame of the stated size.
    #[error(
        "the frame at byte {at} that should hold bytes {range} of the volume cannot be decompressed to them"
    )]
    DataUndecodable {
        /// Where the frame begins.
        at: u64,
        /// What it should hold.
        range: ByteRange,
    },

    // Broke a rule of the format.
    /// A frame of ours stands where it must not.
    #[error("a {frame} frame stands at byte {at}, where it does not belong")]
    Misplaced {
        /// Where it begins.
        at: u64,
        /// Which it is.
        frame: FrameName,
    },
    /// A group is missing, repeated or out of order.
    #[error("group {found} stands at byte {at} in the place of group {expected}")]
    GroupOrder {
        /// Where its RECORDS frame begins.
        at: u64,
        /// Number of the group that belongs here.
        expected: u64,
        /// Number of the group that is here.
        found: u64,
    },
    /// A group does not begin where the last one ended, or reaches past the volume.
    #[error("the group at byte {at} does not hold the bytes of the volume that come next, from {expected}")]
    GroupRange {
        /// Where its RECORDS frame begins.
        at: u64,
        /// Byte of the volume that comes next.
        expected: u64,
    },
    /// A RECORDS frame contradicts itself.
    #[error("the RECORDS frame at byte {at} contradicts itself ({rule:?})")]
    Records {
        /// Where it begins.
        at: u64,
        /// How.
        rule: RecordsRule,
    },
    /// The plain bytes of a leaf are not those that were hashed.
    #[error("bytes {range} of the volume are not those that were backed up")]
    LeafChanged {
        /// The leaf.
        range: ByteRange,
    },
    /// Bytes that should be zero are not.
    #[error("bytes {range} of the volume should be zero and are not")]
    NotZero {
        /// The bytes.
        range: ByteRange,
    },
    /// A checkpoint says that something else was done than what stands before it.
    #[error("the checkpoint at byte {at} is not about what stands before it")]
    Checkpoint {
        /// Where it begins.
        at: u64,
    },
    /// END counts something that is not there.
    #[error("END says {stated} for {count:?}, the image holds {found}")]
    Counted {
        /// What.
        count: Count,
        /// In END.
        stated: u64,
        /// In the frames before it.
        found: u64,
    },
    /// The root in END is not that of the leaves.
    #[error("the root hash is not that of the bytes in this image")]
    RootDiffers,
    /// The seek table is not the one that belongs to the frames.
    #[error("the seek table at byte {at} does not belong to the frames before it")]
    TableDiffers {
        /// Where it begins or should begin.
        at: u64,
    },
    /// Something follows the image.
    #[error("something follows the end of the image at byte {at}")]
    Trailing {
        /// Where the image ends.
        at: u64,
    },

    // Legal, perhaps, but not for this program.
    /// A frame of another format version.
    #[error(
        "the frame at byte {at} is of format version {version}; this program reads version {}",
        layout::VERSION
    )]
    Version {
        /// Where it begins.
        at: u64,
        /// Its version.
        version: u32,
    },
    /// A frame of a kind that this program does not know.
    #[error("the frame at byte {at} is of the unknown kind {tag:?}")]
    UnknownFrame {
        /// Where it begins.
        at: u64,
        /// Its tag.
        tag: [u8; 4],
    },
    /// An incremental image without the images that it continues.
    #[error("this is an incremental image over {parent}, which is needed to read it")]
    ParentMissing {
        /// Frozen UUID of the parent.
        parent: Uuid,
    },
    /// The bytes of the parent that an incremental image refers to cannot be had.
    #[error("bytes {range} of the volume are those of the parent image, which does not give them")]
    ParentUnreadable {
        /// The bytes.
        range: ByteRange,
    },
    /// Another leaf size.
    #[error(
        "the image has leaves of {size} bytes; this program reads leaves of {} bytes",
        layout::LEAF
    )]
    LeafSize {
        /// In bytes.
        size: u32,
    },
    /// More than the limits of this program.
    #[error("the volume of {size} bytes is larger than this program can address")]
    VolumeTooLarge {
        /// In bytes.
        size: u64,
    },
    /// More frames than a seek table can list.
    #[error("the image would hold more frames than its seek table can list")]
    TooManyFrames,
}

impl ImageError {
    /// Whether the image may be good, only not for this program.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Version { .. }
                | Self::UnknownFrame { .. }
                | Self::LeafSize { .. }
                | Self::VolumeTooLarge { .. }
                | Self::TooManyFrames
        )
    }
}
