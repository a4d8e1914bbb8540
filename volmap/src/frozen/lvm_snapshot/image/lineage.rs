//! What changed between two snapshots of one origin: what the older one copied.
//!
//! Before a chunk of the origin is overwritten for the first time, every snapshot that there is counts a copy of it and logs it. So all
//! that was overwritten before the newer snapshot was frozen is counted by the status of the older one from then on. That status is
//! sampled after the freeze, and never earlier, and the log is read until it is as long: a copy that is counted may not be in it yet.
//! What was overwritten later is in it, too, and counts as changed for nothing.

use std::any::Any;

use super::{Confirmed, LvmSnapshotImage};
use crate::frozen::lvm_snapshot::exception_store::StoreError;
use crate::frozen::lvm_snapshot::log::Source;
use crate::frozen::{ChangedMap, FrozenImage, NoLineage};
use crate::range::ByteRange;

impl LvmSnapshotImage {
    /// What was overwritten since `older`.
    pub(super) fn changes_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let older: &dyn Any = older;
        let older = older.downcast_ref::<Self>().ok_or(NoLineage::Unrelated)?;
        // Both hold it open, so one number is one device.
        if older.snapshot.origin() != self.snapshot.origin() {
            return Err(NoLineage::Unrelated);
        }
        self.sample()
            .map_err(|error| NoLineage::Newer(error.to_string()))?;
        Ok(ChangedMap::all_but(self.size, older.not_copied()?))
    }

    /// Whether a later snapshot can ask it what was overwritten.
    pub(super) fn is_comparable(&self) -> bool {
        !self.state().log.is_broken() && self.sample().is_ok()
    }

    /// What was not overwritten from its freeze until now, in order.
    fn not_copied(&self) -> Result<Vec<ByteRange>, NoLineage> {
        let mut state = self.state();
        let gone = |error: &dyn std::fmt::Display| NoLineage::Older(error.to_string());
        let allocated = self.sample().map_err(|error| gone(&error))?;
        let begun = self.geometry.begun(allocated).map_err(|error| gone(&error))?;
        if state.log.is_broken() {
            return Err(gone(&StoreError::Entry));
        }
        if begun < state.log.len() {
            return Err(gone(&StoreError::Shrunk));
        }
        match self.read_log(&mut state, begun).map_err(|error| gone(&error))? {
            Confirmed::All => {}
            Confirmed::Copied => {
                let why = "copies that it counts are not in its log yet".to_owned();
                return Err(NoLineage::NotNow(why));
            }
            Confirmed::Nothing => return Err(gone(&StoreError::Entry)),
        }
        let whole = ByteRange::new(0, self.size);
        let pieces = whole.into_iter().flat_map(|whole| state.log.pieces(whole));
        let kept = pieces.filter(|(_, source, _)| *source == Source::Origin);
        Ok(kept.map(|(range, ..)| range).collect())
    }
}
