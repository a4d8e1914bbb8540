//! What became of the bytes: counted when they are committed, never when they are asked for.

use std::collections::BTreeMap;

use volmap::range::ByteRange;

use crate::image::{self, Checkpoint, Kind, Receipt, Totals, Transport};
use crate::unreadable::UnreadableRanges;

/// Counts of committed work.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Data read from a LUN and confirmed, and stored.
    pub bytes_direct: u64,
    /// Data read through the host, and stored.
    pub bytes_nbd: u64,
    /// Zeroes and holes, which were not read.
    pub bytes_zero: u64,
    /// What is as it was in the parent image: leaves that were not read, and blocks of others that are not stored.
    pub bytes_same: u64,
    /// Data that was read directly, was not confirmed, and had to be read again.
    pub bytes_moved: u64,
    /// Of these, what was then read directly from its new place.
    pub bytes_remapped_direct: u64,
    /// Direct data that was read through the host as well, and was the same.
    pub bytes_audited: u64,
    /// Confirmations after a read (law P3).
    pub validations: u64,
    /// What neither a LUN nor the host could read.
    pub unreadable: UnreadableRanges,
    /// Of the direct data, what came from each LUN.
    pub by_lun: BTreeMap<u16, u64>,
    /// Why data was not read directly, with the bytes that each reason stands for.
    pub reasons: BTreeMap<String, u64>,
}

impl Tally {
    /// What was done up to a checkpoint, as the image and the checkpoint tell it.
    pub fn resumed(image: &image::Tally, checkpoint: &Checkpoint) -> Self {
        Self {
            bytes_direct: image.direct,
            bytes_nbd: image.nbd,
            bytes_zero: image.zero + image.hole,
            bytes_same: image.same,
            bytes_moved: checkpoint.totals.moved,
            bytes_remapped_direct: checkpoint.totals.remapped_direct,
            bytes_audited: checkpoint.audited,
            validations: checkpoint.totals.validations,
            unreadable: UnreadableRanges::unlisted(image.unreadable),
            // Told by no image: what is counted is of this run.
            by_lun: BTreeMap::new(),
            reasons: checkpoint.reasons.clone(),
        }
    }

    /// What END says of the job.
    pub fn totals(&self) -> Totals {
        Totals {
            moved: self.bytes_moved,
            remapped_direct: self.bytes_remapped_direct,
            validations: self.validations,
        }
    }

    /// What a checkpoint says of the job.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            totals: self.totals(),
            audited: self.bytes_audited,
            reasons: self.reasons.clone(),
        }
    }

    /// Adds other work.
    pub fn add(&mut self, other: &Self) {
        self.bytes_direct += other.bytes_direct;
        self.bytes_nbd += other.bytes_nbd;
        self.bytes_zero += other.bytes_zero;
        self.bytes_same += other.bytes_same;
        self.bytes_moved += other.bytes_moved;
        self.bytes_remapped_direct += other.bytes_remapped_direct;
        self.bytes_audited += other.bytes_audited;
        self.validations += other.validations;
        self.unreadable.append(&other.unreadable);
        for (lun, bytes) in &other.by_lun {
            *self.by_lun.entry(*lun).or_default() += bytes;
        }
        for (reason, bytes) in &other.reasons {
            self.add_reason(reason, *bytes);
        }
    }

    /// Counts a range by its receipt; unreadable ones are listed apart, in volume order. `moved` says that a read of it had been
    /// thrown away.
    pub(super) fn count(&mut self, kind: Kind, receipt: Receipt, range: ByteRange, moved: bool) {
        match receipt.transport {
            Transport::None if kind == Kind::Unreadable => {}
            Transport::None => self.bytes_zero += range.len(),
            Transport::Nbd => self.bytes_nbd += range.len(),
            Transport::Direct => {
                self.bytes_direct += range.len();
                *self.by_lun.entry(receipt.lun).or_default() += range.len();
                if moved {
                    self.bytes_remapped_direct += range.len();
                }
            }
        }
    }

    /// Counts bytes that were not read directly.
    pub fn add_reason(&mut self, reason: &str, bytes: u64) {
        match self.reasons.get_mut(reason) {
            Some(counted) => *counted += bytes,
            None => {
                self.reasons.insert(reason.to_owned(), bytes);
            }
        }
    }

    /// Share of the data that was read directly, in percent; 100 where there was no data.
    pub fn percent_direct(&self) -> f64 {
        let data = self.bytes_direct + self.bytes_nbd;
        #[allow(
            clippy::cast_precision_loss,
            reason = "a share for people and a threshold, not a count"
        )]
        if data == 0 {
            100.0
        } else {
            self.bytes_direct as f64 * 100.0 / data as f64
        }
    }

    /// All committed bytes of the volume.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_direct + self.bytes_nbd + self.bytes_zero + self.bytes_same + self.unreadable.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_data_is_wholly_direct() {
        assert_eq!(Tally::default().percent_direct(), 100.0);
        let tally = Tally {
            bytes_direct: 1,
            bytes_nbd: 3,
            ..Tally::default()
        };
        assert_eq!(tally.percent_direct(), 25.0);
    }

    #[test]
    fn adding_adds_every_count() {
        let mut one = Tally {
            bytes_direct: 1,
            bytes_nbd: 2,
            bytes_zero: 3,
            bytes_same: 13,
            bytes_moved: 4,
            bytes_remapped_direct: 5,
            bytes_audited: 6,
            validations: 7,
            unreadable: UnreadableRanges::default(),
            by_lun: BTreeMap::from([(0, 1)]),
            reasons: BTreeMap::from([("a".into(), 1)]),
        };
        one.unreadable.add(ByteRange::new(0, 10).unwrap());
        let mut behind = UnreadableRanges::default();
        behind.add(ByteRange::new(20, 5).unwrap());
        let mut both = one.unreadable.clone();
        both.append(&behind);
        one.add(&Tally {
            unreadable: behind,
            by_lun: BTreeMap::from([(0, 2), (1, 3)]),
            reasons: BTreeMap::from([("a".into(), 1), ("b".into(), 9)]),
            ..one.clone()
        });
        assert_eq!(
            one,
            Tally {
                bytes_direct: 2,
                bytes_nbd: 4,
                bytes_zero: 6,
                bytes_same: 26,
                bytes_moved: 8,
                bytes_remapped_direct: 10,
                bytes_audited: 12,
                validations: 14,
                unreadable: both,
                by_lun: BTreeMap::from([(0, 3), (1, 3)]),
                reasons: BTreeMap::from([("a".into(), 2), ("b".into(), 9)]),
            }
        );
    }
}
