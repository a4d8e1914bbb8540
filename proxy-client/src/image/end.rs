//! The END frame: what the image held, summed up, its root, and the seek table that must follow.

use bytes::Bytes;
use serde::Serialize;

use super::error::{Count, ImageError};
use super::frame::{Checked, Key, Payload, array_at, u64_at};
use super::hash::Root;
use super::layout::{self, end as field};
use super::record::{Kind, Record, Transport};

/// Bytes of the volume by kind and transport, summed up from records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Bytes of data.
    pub data: u64,
    /// Bytes that the map calls zero.
    pub zero: u64,
    /// Bytes that the map calls a hole.
    pub hole: u64,
    /// Bytes that could not be read.
    pub unreadable: u64,
    /// Bytes that are the parent's.
    pub same: u64,
    /// Bytes read straight from a LUN.
    pub direct: u64,
    /// Bytes read through the host.
    pub nbd: u64,
}

impl Tally {
    /// Adds a record.
    pub(super) fn add(&mut self, record: &Record) {
        let length = record.range.len();
        self.records += 1;
        *match record.kind {
            Kind::Data => &mut self.data,
            Kind::Zero => &mut self.zero,
            Kind::Hole => &mut self.hole,
            Kind::Unreadable => &mut self.unreadable,
            Kind::Same => &mut self.same,
        } += length;
        match record.receipt.transport {
            Transport::None => {}
            Transport::Direct => self.direct += length,
            Transport::Nbd => self.nbd += length,
        }
    }
}

/// What only the job knows: told to [`super::Encoder::finish`] and kept in END.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Totals {
    /// Bytes read again because their mapping had moved.
    pub moved: u64,
    /// Bytes of these that were got straight from the new place.
    pub remapped_direct: u64,
    /// Validations asked of the host.
    pub validations: u64,
}

/// What an image held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct End {
    /// Size of the volume in bytes.
    pub size: u64,
    /// Groups of data frames.
    pub groups: u64,
    /// Frames before the seek table, this one included.
    pub frames: u64,
    /// Bytes by kind and transport.
    pub tally: Tally,
    /// What the job told.
    pub totals: Totals,
    /// The root.
    pub root: Root,
    /// Bytes of the seek table frame that follows.
    pub(super) table_length: u64,
    /// BLAKE3 of its payload.
    #[serde(skip)]
    pub(super) table_hash: [u8; 32],
}

impl End {
    pub(super) fn encode(&self, version: u32, key: Key) -> Bytes {
        // The payload ends with the checksum, which seal adds.
        let mut payload = Payload::new(layout::END_TAG, version, field::CHECKSUM.start, 0);
        payload.put_u64(field::SIZE, self.size);
        payload.put_u64(field::GROUPS, self.groups);
        payload.put_u64(field::FRAMES, self.frames);
        payload.put_u64(field::RECORDS, self.tally.records);
        payload.put_u64(field::DATA, self.tally.data);
        payload.put_u64(field::ZERO, self.tally.zero);
        payload.put_u64(field::HOLE, self.tally.hole);
        payload.put_u64(field::UNREADABLE, self.tally.unreadable);
        payload.put_u64(field::DIRECT, self.tally.direct);
        payload.put_u64(field::NBD, self.tally.nbd);
        payload.put_u64(field::MOVED, self.totals.moved);
        payload.put_u64(field::REMAPPED_DIRECT, self.totals.remapped_direct);
        payload.put_u64(field::VALIDATIONS, self.totals.validations);
        payload.put(field::ROOT, self.root.as_bytes());
        payload.put_u64(field::TABLE_LENGTH, self.table_length);
        payload.put(field::TABLE_HASH, &self.table_hash);
        let frame = payload.seal(key);
        assert_eq!(frame.len(), layout::END_FRAME, "END has one length");
        frame
    }

    pub(super) fn decode(payload: &Checked<'_>, at: u64) -> Result<Self, ImageError> {
        let bytes = payload.bytes;
        if bytes.len() != field::CHECKSUM.start {
            return Err(ImageError::FrameLength { at });
        }
        let kinds = [field::DATA, field::ZERO, field::HOLE, field::UNREADABLE];
        let own = kinds
            .map(|kind| u64_at(bytes, kind))
            .into_iter()
            .fold(0, u64::saturating_add);
        Ok(Self {
            size: u64_at(bytes, field::SIZE),
            groups: u64_at(bytes, field::GROUPS),
            frames: u64_at(bytes, field::FRAMES),
            tally: Tally {
                records: u64_at(bytes, field::RECORDS),
                data: u64_at(bytes, field::DATA),
                zero: u64_at(bytes, field::ZERO),
                hole: u64_at(bytes, field::HOLE),
                unreadable: u64_at(bytes, field::UNREADABLE),
                // What is nothing else; the frames themselves are counted by whoever reads them.
                same: u64_at(bytes, field::SIZE).saturating_sub(own),
                direct: u64_at(bytes, field::DIRECT),
                nbd: u64_at(bytes, field::NBD),
            },
            totals: Totals {
                moved: u64_at(bytes, field::MOVED),
                remapped_direct: u64_at(bytes, field::REMAPPED_DIRECT),
                validations: u64_at(bytes, field::VALIDATIONS),
            },
            root: Root::from_bytes(array_at(bytes, field::ROOT)),
            table_length: u64_at(bytes, field::TABLE_LENGTH),
            table_hash: array_at(bytes, field::TABLE_HASH),
        })
    }

    /// Compares what this END, as read, says with what the frames before it held.
    pub(super) fn check_against(&self, found: &Self, table_at: u64) -> Result<(), ImageError> {
        let counts = [
            (Count::Size, self.size, found.size),
            (Count::Groups, self.groups, found.groups),
            (Count::Frames, self.frames, found.frames),
            (Count::Records, self.tally.records, found.tally.records),
            (Count::Data, self.tally.data, found.tally.data),
            (Count::Zero, self.tally.zero, found.tally.zero),
            (Count::Hole, self.tally.hole, found.tally.hole),
            (Count::Unreadable, self.tally.unreadable, found.tally.unreadable),
            (Count::Direct, self.tally.direct, found.tally.direct),
            (Count::Nbd, self.tally.nbd, found.tally.nbd),
        ];
        for (count, stated, found) in counts {
            if stated != found {
                return Err(ImageError::Counted { count, stated, found });
            }
        }
        if self.root != found.root {
            return Err(ImageError::RootDiffers);
        }
        if (self.table_length, self.table_hash) != (found.table_length, found.table_hash) {
            return Err(ImageError::TableDiffers { at: table_at });
        }
        Ok(())
    }
}
