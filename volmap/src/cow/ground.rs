//! What copy-before-write stands on: where origin and copy area lie, and who vouches that it stays so.

use crate::cow::CowError;
use crate::frozen::Attestation;
use crate::map::ContentMap;
use crate::storage::Standing;
use crate::store::{StoreGraph, StoreId};

/// Vouches for origin and copy area of a frozen image.
pub trait Witness: Send + Sync {
    /// Samples the witness now. Cheap (about a microsecond for a lease): it is called for every status and every read.
    fn check(&self) -> Standing;
}

/// What a survey found.
pub struct Survey {
    /// The stores of origin and copy area.
    pub graph: StoreGraph,
    /// What the origin holds.
    pub content: ContentMap,
    /// The store that the origin is, where locations in it may be given.
    pub origin: Option<StoreId>,
    /// The store that the copy area is, where locations in it may be given.
    pub copy_area: Option<StoreId>,
    /// Whether the kernel keeps the witness.
    pub attestation: Attestation,
    /// The witness, good since before the map was taken.
    pub witness: Box<dyn Witness>,
    /// Whether somebody else may have written to the origin since the survey before this one.
    pub origin_was_open: bool,
}

/// Finds out where origin and copy area lie.
pub trait Ground: Send + Sync {
    /// What takes long of a survey and can be done ahead of it: has every block of the copy area in its place. Called while writers go on and no
    /// frozen image stands, nor begins meanwhile.
    ///
    /// # Errors
    /// The freeze fails with it.
    fn settle(&self) -> Result<(), CowError> {
        Ok(())
    }

    /// Called at each freeze, while no write is in flight and everything written is on the device.
    ///
    /// A guard that was lost may be taken anew only if `alone`, which is that no frozen image stands: an earlier survey's witness must
    /// never say "good" again once it was not.
    ///
    /// # Errors
    /// The freeze fails with it.
    fn survey(&self, alone: bool) -> Result<Survey, CowError>;
}
