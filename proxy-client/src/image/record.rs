//! Records: what a stretch of the volume holds, and the receipt for how its bytes were got.

use serde::{Deserialize, Serialize};
use volmap::generation::Generation;
use volmap::range::ByteRange;

use super::frame::{array_at, u64_at};
use super::layout::record as field;

/// What a stretch of the volume holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Bytes that were read.
    Data,
    /// Zeroes, as the map says.
    Zero,
    /// Zeroes without space behind them, as the map says.
    Hole,
    /// Bytes that could not be read; zeroes stand in for them.
    Unreadable,
    /// The bytes of the parent at the same place; zeroes stand in for them.
    Same,
}

/// The way that bytes took.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// None: nothing was read.
    None,
    /// Straight from the LUN.
    Direct,
    /// Through the host.
    Nbd,
}

/// How bytes were got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Receipt {
    /// The way they took.
    pub transport: Transport,
    /// Index in [`super::Header::luns`] of the LUN they came from; 0 where the transport is not direct.
    pub lun: u16,
    /// The generation that was confirmed after the read.
    pub generation: Generation,
    /// How often they were read again because their mapping had moved.
    pub rounds: u8,
}

impl Receipt {
    /// The receipt of a stretch that was not read, confirmed at `generation`.
    pub fn unread(generation: Generation) -> Self {
        Self {
            transport: Transport::None,
            lun: 0,
            generation,
            rounds: 0,
        }
    }
}

/// What a stretch of the volume holds, and how it was got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Bytes of the volume.
    pub range: ByteRange,
    /// What they are.
    pub kind: Kind,
    /// How they were got.
    pub receipt: Receipt,
}

impl Record {
    /// Whether kind, transport and LUN go together: data was read, everything else was not.
    pub(super) fn is_consistent(&self) -> bool {
        let read = self.receipt.transport != Transport::None;
        let direct = self.receipt.transport == Transport::Direct;
        read == (self.kind == Kind::Data) && (direct || self.receipt.lun == 0)
    }

    pub(super) fn encode(&self) -> [u8; field::LEN] {
        let mut bytes = [0; field::LEN];
        bytes[field::LENGTH].copy_from_slice(&self.range.len().to_le_bytes());
        bytes[field::GENERATION].copy_from_slice(&self.receipt.generation.to_wire().to_le_bytes());
        bytes[field::LUN].copy_from_slice(&self.receipt.lun.to_le_bytes());
        bytes[field::KIND.start] = match self.kind {
            Kind::Data => 0,
            Kind::Zero => 1,
            Kind::Hole => 2,
            Kind::Unreadable => 3,
            Kind::Same => 4,
        };
        bytes[field::TRANSPORT.start] = match self.receipt.transport {
            Transport::None => 0,
            Transport::Direct => 1,
            Transport::Nbd => 2,
        };
        bytes[field::ROUNDS.start] = self.receipt.rounds;
        bytes
    }

    /// The record in `bytes` (exactly one) that begins at `start` of the volume; `None` if it breaks a rule.
    pub(super) fn decode(bytes: &[u8], start: u64) -> Option<Self> {
        let kind = match bytes[field::KIND.start] {
            0 => Kind::Data,
            1 => Kind::Zero,
            2 => Kind::Hole,
            3 => Kind::Unreadable,
            4 => Kind::Same,
            _ => return None,
        };
        let transport = match bytes[field::TRANSPORT.start] {
            0 => Transport::None,
            1 => Transport::Direct,
            2 => Transport::Nbd,
            _ => return None,
        };
        if bytes[field::RESERVED] != [0; 3] {
            return None;
        }
        let record = Self {
            range: ByteRange::new(start, u64_at(bytes, field::LENGTH))?,
            kind,
            receipt: Receipt {
                transport,
                lun: u16::from_le_bytes(array_at(bytes, field::LUN)),
                generation: Generation::from_wire(u64_at(bytes, field::GENERATION)),
                rounds: bytes[field::ROUNDS.start],
            },
        };
        record.is_consistent().then_some(record)
    }
}

/// Adds a record behind others, joined to the last one if it continues it.
pub(super) fn push_joined(records: &mut Vec<Record>, next: Record) {
    if let Some(last) = records.last_mut()
        && last.range.end() == next.range.start()
        && last.kind == next.kind
        && last.receipt == next.receipt
        && let Some(joined) = ByteRange::from_bounds(last.range.start(), next.range.end())
    {
        last.range = joined;
    } else {
        records.push(next);
    }
}

/// The parts of sorted records that lie in `range`, joined where they can be.
pub(super) fn clip(records: &[Record], range: ByteRange) -> Vec<Record> {
    let first = records.partition_point(|record| record.range.end() <= range.start());
    let mut clipped = Vec::new();
    for record in &records[first..] {
        let Some(part) = record.range.intersection(range) else {
            break;
        };
        push_joined(
            &mut clipped,
            Record {
                range: part,
                ..*record
            },
        );
    }
    clipped
}

/// The ranges of records that are of what is the parent's.
pub(super) fn same(records: &[Record]) -> impl Iterator<Item = ByteRange> {
    let same = records.iter().filter(|record| record.kind == Kind::Same);
    same.map(|record| record.range)
}

/// Whether sorted records cover `range` without gap or overlap.
pub(super) fn tile(records: &[Record], range: ByteRange) -> bool {
    let mut at = range.start();
    for record in records {
        if record.range.start() != at {
            return false;
        }
        at = record.range.end();
    }
    at == range.end()
}
