//! Images whose checksums are right and whose contents break a rule: the checks behind the checksums.

use std::error::Error as _;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Stretch, decode, encode, frames, stretch};
use crate::chain::Chain;
use crate::error::Error;
use crate::image::frame::Key;
use crate::image::layout::{self, CHECKSUM, SKIPPABLE_HEADER};
use crate::image::{Count, ImageError, Kind, LEAF, RECORDS_FRAME_MAX, RecordsRule};

/// One data frame of a leaf, one zero frame of a leaf.
fn plain() -> Vec<Stretch> {
    vec![stretch(LEAF, Kind::Data, 3), stretch(LEAF, Kind::Zero, 0)]
}

/// An image of [`plain`] in pieces, to be put together again.
pub(super) struct Forgery {
    pub(super) frames: Vec<Vec<u8>>,
    key: Key,
}

const HEADER: usize = 0;
pub(super) const RECORDS: usize = 1;
const END: usize = 4;
const TABLE: usize = 5;

impl Forgery {
    fn new() -> Self {
        let (records, plain) = super::volume(&plain());
        let image = super::encode_with(&super::header(plain.len() as u64), &records, &plain, LEAF).0;
        Self::of(&image)
    }

    /// Of an image of two frames.
    pub(super) fn of(image: &[u8]) -> Self {
        let cut = Self::cut(image);
        assert_eq!(cut.frames.len(), 6);
        cut
    }

    /// Of any image.
    pub(super) fn cut(image: &[u8]) -> Self {
        let frames: Vec<_> = frames(image)
            .into_iter()
            .map(|range| image[range].to_vec())
            .collect();
        let key = frames[HEADER][frames[HEADER].len() - CHECKSUM..]
            .try_into()
            .unwrap();
        Self {
            frames,
            key: Some(key),
        }
    }

    /// Changes a payload of ours and seals it again.
    pub(super) fn change(mut self, frame: usize, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let bytes = &self.frames[frame];
        let mut payload = bytes[SKIPPABLE_HEADER..bytes.len() - CHECKSUM].to_vec();
        change(&mut payload);
        let sum = match self.key.filter(|_| frame != HEADER) {
            Some(key) => blake3::keyed_hash(&key, &payload),
            None => blake3::hash(&payload),
        };
        payload.extend_from_slice(sum.as_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        self.frames[frame] = [
            &layout::OUR_MAGIC.to_le_bytes()[..],
            &length.to_le_bytes(),
            &payload,
        ]
        .concat();
        self
    }

    pub(super) fn set(self, frame: usize, at: usize, field: Range<usize>, value: u64) -> Self {
        self.change(frame, |payload| {
            let length = field.len();
            let bytes = &mut payload[at + field.start..at + field.end];
            bytes.copy_from_slice(&value.to_le_bytes()[..length]);
        })
    }

    fn error(self) -> ImageError {
        decode(&self.frames.concat()).unwrap_err()
    }

    fn rule(self) -> RecordsRule {
        match self.error() {
            ImageError::Records { rule, .. } => rule,
            other => panic!("{other:?}"),
        }
    }
}

/// Offset of the n-th frame entry or record in the RECORDS payload.
fn entry(index: usize) -> usize {
    layout::records::LEN + index * layout::frame_entry::LEN
}
pub(super) fn record(index: usize) -> usize {
    entry(2) + index * layout::record::LEN
}

#[test]
fn the_forgery_itself_is_good() {
    let forgery = Forgery::new().change(RECORDS, |_| {}).change(END, |_| {});
    assert!(decode(&forgery.frames.concat()).is_ok());
}

#[test]
fn other_versions_and_unknown_frames_are_refused_as_unsupported() {
    for frame in [HEADER, RECORDS, END] {
        for version in [0, 4] {
            let error = Forgery::new()
                .set(frame, 0, layout::header::VERSION, version)
                .error();
            assert!(error.is_unsupported());
            assert!(matches!(error, ImageError::Version { .. }), "{error:?}");
        }
    }
    let error = Forgery::new()
        .set(RECORDS, 0, layout::header::TAG, 0x4142_4344)
        .error();
    assert!(matches!(error, ImageError::UnknownFrame { .. }), "{error:?}");
    assert!(error.is_unsupported());
}

#[test]
fn parents_other_leaves_and_sizes_are_refused() {
    use layout::header::{LEAF_SIZE, PARENT_FROZEN, PARENT_ROOT, SIZE};
    for field in [PARENT_FROZEN, PARENT_ROOT] {
        let error = Forgery::new()
            .set(HEADER, 0, field.start..field.start + 1, 1)
            .error();
        assert!(matches!(error, ImageError::ParentMissing { .. }));
    }
    let error = Forgery::new().set(HEADER, 0, LEAF_SIZE, LEAF * 2).error();
    assert_eq!(error, ImageError::LeafSize { size: 131_072 });
    let error = Forgery::new().set(HEADER, 0, SIZE, 1 << 63).error();
    assert_eq!(error, ImageError::VolumeTooLarge { size: 1 << 63 });
    // The largest one passes the header, and nothing is reserved for it: its groups fail for their key.
    let error = Forgery::new().set(HEADER, 0, SIZE, (1 << 63) - 1).error();
    assert!(matches!(error, ImageError::Checksum { .. }), "{error:?}");
    let text = layout::header::LEN;
    let error = Forgery::new()
        .change(HEADER, |payload| payload[text] = b'[')
        .error();
    assert_eq!(error, ImageError::HeaderText);
    let error = Forgery::new()
        .change(HEADER, |payload| payload.push(b' '))
        .error();
    assert_eq!(error, ImageError::FrameLength { at: 0 });
}

#[test]
fn a_group_that_contradicts_itself_is_refused() {
    use layout::{frame_entry, record as record_field, records};
    let forge = |at, field, value| Forgery::new().set(RECORDS, at, field, value);
    assert_eq!(forge(0, records::RESERVED, 1).rule(), RecordsRule::Reserved);
    assert_eq!(forge(0, records::FRAME_COUNT, 0).rule(), RecordsRule::Counts);
    assert_eq!(forge(0, records::FRAME_COUNT, 3).rule(), RecordsRule::Counts);
    assert_eq!(
        forge(0, records::FRAME_COUNT, u64::from(u32::MAX)).rule(),
        RecordsRule::Counts
    );
    assert_eq!(forge(0, records::RECORD_COUNT, 1).rule(), RecordsRule::Counts);
    assert_eq!(forge(0, records::LEAF_COUNT, 2).rule(), RecordsRule::Counts);
    // Nothing is the parent's in a full image.
    assert_eq!(
        forge(record(0), record_field::KIND, 4).rule(),
        RecordsRule::Record
    );
    assert_eq!(forge(record(1), record_field::KIND, 4).rule(), RecordsRule::Same);
    let same_in_data =
        forge(record(0), record_field::KIND, 4).set(RECORDS, record(0), record_field::TRANSPORT, 0);
    assert_eq!(
        same_in_data.set(RECORDS, 0, records::VERSION, 3).rule(),
        RecordsRule::Same
    );
    assert_eq!(
        forge(entry(0), frame_entry::KIND, 3).rule(),
        RecordsRule::FrameKind
    );
    assert_eq!(forge(entry(0), frame_entry::KIND, 1).rule(), RecordsRule::Leaves);
    assert_eq!(
        forge(entry(1), frame_entry::RESERVED, 1).rule(),
        RecordsRule::Reserved
    );
    assert_eq!(
        forge(entry(0), frame_entry::PLAIN, 0).rule(),
        RecordsRule::FrameSize
    );
    assert_eq!(
        forge(entry(0), frame_entry::PLAIN, LEAF - 1).rule(),
        RecordsRule::FrameSize
    );
    assert_eq!(
        forge(entry(1), frame_entry::PLAIN, 2 * LEAF).rule(),
        RecordsRule::FramesCover
    );
    assert_eq!(
        forge(record(0), record_field::LENGTH, 0).rule(),
        RecordsRule::Record
    );
    assert_eq!(
        forge(record(0), record_field::LENGTH, LEAF - 1).rule(),
        RecordsRule::RecordsCover
    );
    assert_eq!(
        forge(record(1), record_field::LENGTH, LEAF + 1).rule(),
        RecordsRule::RecordsCover
    );
    assert_eq!(
        forge(record(0), record_field::LENGTH, u64::MAX).rule(),
        RecordsRule::RecordsCover
    );
    assert_eq!(
        forge(record(0), record_field::KIND, 4).rule(),
        RecordsRule::Record
    );
    assert_eq!(
        forge(record(0), record_field::KIND, 1).rule(),
        RecordsRule::Record
    );
    assert_eq!(
        forge(record(0), record_field::TRANSPORT, 3).rule(),
        RecordsRule::Record
    );
    assert_eq!(
        forge(record(0), record_field::TRANSPORT, 0).rule(),
        RecordsRule::Record
    );
    assert_eq!(forge(record(0), record_field::LUN, 2).rule(), RecordsRule::Record);
    assert_eq!(forge(record(1), record_field::LUN, 1).rule(), RecordsRule::Record);
    assert_eq!(
        forge(record(0), record_field::RESERVED, 1).rule(),
        RecordsRule::Record
    );
    let data_in_zeroes =
        forge(record(1), record_field::KIND, 0).set(RECORDS, record(1), record_field::TRANSPORT, 2);
    assert_eq!(data_in_zeroes.rule(), RecordsRule::DataInZeroFrame);
}

#[test]
fn a_group_out_of_place_is_refused() {
    use layout::records;
    let forge = |field, value| Forgery::new().set(RECORDS, 0, field, value).error();
    assert!(matches!(
        forge(records::GROUP, 1),
        ImageError::GroupOrder {
            expected: 0,
            found: 1,
            ..
        }
    ));
    for (field, value) in [
        (records::START, LEAF),
        (records::LENGTH, 0),
        (records::LENGTH, 2 * LEAF + 1),
        (records::LENGTH, u64::MAX),
    ] {
        assert!(matches!(
            forge(field, value),
            ImageError::GroupRange { expected: 0, .. }
        ));
    }
}

#[test]
fn frames_that_are_not_what_is_said_of_them_are_refused() {
    use layout::frame_entry::{COMPRESSED, HASH};
    let replace = |frame: usize, bytes: Vec<u8>| {
        let mut forgery = Forgery::new().change(RECORDS, |payload| {
            let at = entry(frame - 2);
            let length = u32::try_from(bytes.len()).unwrap();
            payload[at + COMPRESSED.start..at + COMPRESSED.end].copy_from_slice(&length.to_le_bytes());
            payload[at + HASH.start..at + HASH.end].copy_from_slice(blake3::hash(&bytes).as_bytes());
        });
        forgery.frames[frame] = bytes;
        forgery.error()
    };
    let frame = |plain: &[u8]| zstd::bulk::compress(plain, 3).unwrap();
    let leaf = usize::try_from(LEAF).unwrap();
    let (data, zeroes) = (Forgery::new().frames[2].clone(), Forgery::new().frames[3].clone());

    assert!(matches!(
        replace(2, frame(&vec![1; leaf])),
        ImageError::LeafChanged { .. }
    ));
    for bytes in [
        // Another length; two frames; a skippable frame first; garbage.
        frame(&vec![1; leaf + 1]),
        frame(&vec![1; leaf - 1]),
        [frame(&vec![1; leaf]), frame(&[])].concat(),
        [vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], data].concat(),
        vec![7; 100],
    ] {
        assert!(matches!(replace(2, bytes), ImageError::DataUndecodable { .. }));
    }
    let mut almost = vec![0; leaf];
    almost[leaf - 1] = 1;
    assert!(matches!(replace(3, frame(&almost)), ImageError::NotZero { .. }));
    assert!(matches!(
        replace(3, [zeroes, frame(&[])].concat()),
        ImageError::DataUndecodable { .. }
    ));
    // Not our own bytes, but zeroes all the same: then END's table differs, and nothing else.
    assert!(matches!(
        replace(3, frame(&vec![0; leaf])),
        ImageError::TableDiffers { .. }
    ));
}

/// A zero record over data in a data frame.
#[test]
fn zeroes_that_are_none_are_refused() {
    let error = Forgery::new()
        .set(RECORDS, record(0), layout::record::KIND, 1)
        .set(RECORDS, record(0), layout::record::TRANSPORT, 0)
        .error();
    assert!(matches!(error, ImageError::NotZero { .. }), "{error:?}");
}

#[test]
fn everything_that_end_says_is_compared() {
    use layout::end;
    for (field, count) in [
        (end::SIZE, Count::Size),
        (end::GROUPS, Count::Groups),
        (end::FRAMES, Count::Frames),
        (end::RECORDS, Count::Records),
        (end::DATA, Count::Data),
        (end::ZERO, Count::Zero),
        (end::HOLE, Count::Hole),
        (end::UNREADABLE, Count::Unreadable),
        (end::DIRECT, Count::Direct),
        (end::NBD, Count::Nbd),
    ] {
        match Forgery::new().set(END, 0, field, 0x7777).error() {
            ImageError::Counted { count: found, .. } => assert_eq!(found, count),
            other => panic!("{other:?}"),
        }
    }
    let first = |field: Range<usize>| {
        Forgery::new()
            .set(END, 0, field.start..field.start + 1, 1)
            .error()
    };
    assert_eq!(first(end::ROOT), ImageError::RootDiffers);
    assert!(matches!(
        first(end::TABLE_LENGTH),
        ImageError::TableDiffers { .. }
    ));
    assert!(matches!(first(end::TABLE_HASH), ImageError::TableDiffers { .. }));
    assert!(matches!(
        Forgery::new().change(END, |payload| payload.push(0)).error(),
        ImageError::FrameLength { .. }
    ));
}

#[test]
fn frames_of_ours_in_the_wrong_place_are_refused() {
    let mut forgery = Forgery::new();
    let header = forgery.frames[HEADER].clone();
    forgery.frames.insert(1, header);
    assert!(matches!(forgery.error(), ImageError::Checksum { .. }));
    let forgery = Forgery::new().change(RECORDS, |payload| {
        payload[..4].copy_from_slice(&layout::HEADER_TAG);
    });
    assert!(matches!(forgery.error(), ImageError::Misplaced { .. }));
    let mut early_end = Forgery::new();
    early_end.frames.drain(RECORDS..END);
    assert!(matches!(early_end.error(), ImageError::GroupRange { .. }));
    assert!(encode(&plain()).0.len() > 100);
}

/// Who reads at any place goes by the seek table: what it says of lengths and counts is not believed.
#[test]
fn a_seek_table_cannot_ask_for_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("evil.vbi");
    // A hole behind RECORDS makes it as long as the table says.
    let open = |forgery: &Forgery, hole: u64| {
        let (first, rest) = forgery.frames.split_at(RECORDS + 1);
        let (first, rest) = (first.concat(), rest.concat());
        let file = File::create(&path).unwrap();
        file.write_all_at(&first, 0).unwrap();
        file.write_all_at(&rest, first.len() as u64 + hole).unwrap();
        Chain::open(std::slice::from_ref(&path)).map(drop)
    };
    let records_length = |length: u64| {
        let mut forgery = Forgery::new();
        let hole = length - forgery.frames[RECORDS].len() as u64;
        let at = SKIPPABLE_HEADER + 8 * RECORDS;
        let length = u32::try_from(length).unwrap().to_le_bytes();
        forgery.frames[TABLE][at..at + 4].copy_from_slice(&length);
        let hash = *blake3::hash(&forgery.frames[TABLE][SKIPPABLE_HEADER..]).as_bytes();
        let forgery = forgery.change(END, |payload| {
            payload[layout::end::TABLE_HASH].copy_from_slice(&hash)
        });
        open(&forgery, hole)
    };
    let cause = |opened: Result<(), Error>| opened.unwrap_err().source().unwrap().to_string();
    open(&Forgery::new(), 0).unwrap();
    records_length(RECORDS_FRAME_MAX).unwrap();
    let at = Forgery::new().frames[HEADER].len() as u64;
    for length in [RECORDS_FRAME_MAX + 1, u64::from(u32::MAX)] {
        assert_eq!(
            cause(records_length(length)),
            ImageError::FrameLength { at }.to_string()
        );
    }
    let counted = ImageError::Counted {
        count: Count::Groups,
        stated: 0,
        found: 1,
    };
    let fewer = Forgery::new().set(END, 0, layout::end::GROUPS, 0);
    assert_eq!(cause(open(&fewer, 0)), counted.to_string());
}
