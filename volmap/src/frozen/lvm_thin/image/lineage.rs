//! What changed between two thin snapshots of one pool: what is not mapped to the same blocks.
//!
//! Both maps come out of one metadata snapshot, so both devices hold their blocks at one time. A block that two devices hold is written
//! to by neither, nor by any other: what it holds is the content of both, as long as nobody wrote to a snapshot itself, which is asked
//! afterwards.

use std::any::Any;

use super::{LvmThinImage, NoSurvey};
use crate::frozen::lvm_thin::METHOD;
use crate::frozen::same_places::same;
use crate::frozen::{ChangedMap, FrozenError, FrozenImage, NoLineage};
use crate::limits::METADATA_SNAPSHOT_PATIENCE;

impl LvmThinImage {
    /// What changed since `older`.
    pub(super) fn changes_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let older: &dyn Any = older;
        let older = older.downcast_ref::<Self>().ok_or(NoLineage::Unrelated)?;
        let device = |image: &Self| image.snapshot.device().ok_or(NoLineage::NotTold(METHOD));
        let (then, now) = (device(older)?, device(self)?);
        if then.pool != now.pool {
            return Err(NoLineage::Unrelated);
        }
        let maps = self
            .snapshot
            .maps_beside(then, older.size, METADATA_SNAPSHOT_PATIENCE)
            .map_err(|why| match why {
                NoSurvey::Gone(why) | NoSurvey::Opaque(why) => NoLineage::Unreadable(why),
                NoSurvey::NotNow(why) => NoLineage::NotNow(why),
            })?;
        let lost = |error: FrozenError| error.to_string();
        older.trusted().map_err(lost).map_err(NoLineage::Older)?;
        self.trusted().map_err(lost).map_err(NoLineage::Newer)?;
        Ok(ChangedMap::all_but(self.size, same(&maps.then, &maps.now)))
    }

    /// Whether a later snapshot can be compared with it.
    pub(super) fn is_comparable(&self) -> bool {
        self.snapshot.device().is_some() && self.trusted().is_ok()
    }

    /// Whether nobody wrote to it, and its pool leaves alone what is mapped.
    fn trusted(&self) -> Result<(), FrozenError> {
        self.sample()?;
        match self.snapshot.doubt()? {
            Some(doubt) => Err(FrozenError::Gone(doubt)),
            None => Ok(()),
        }
    }
}
