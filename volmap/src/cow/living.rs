//! What stands behind the gate of an origin: its frozen images, and what it remembers of earlier ones.

use std::sync::Arc;

use crate::cow::frozen::Frozen;
use crate::cow::lineage::Lineage;
use crate::cow::preserve::{CopyError, Trouble};

/// Writers see it shared, from before their first copy until their write has completed; it changes when there are none.
pub(super) struct Living {
    /// Oldest first. Those that are lost stay until they are thawed or the next freeze comes.
    pub(super) images: Vec<Arc<Frozen>>,
    pub(super) lineage: Lineage,
}

impl Living {
    /// Whether a frozen image stands.
    pub(super) fn is_frozen(&self) -> bool {
        self.images.iter().any(|image| !image.is_lost())
    }

    /// Leaves out the images that are known not to stand.
    pub(super) fn prune(&mut self) {
        self.images.retain(|image| !image.is_lost());
    }

    /// Leaves one image out; its lineage stays if that was asked for.
    pub(super) fn remove(&mut self, frozen: &Frozen) {
        let uuid = frozen.description.uuid;
        self.images.retain(|image| image.description.uuid != uuid);
        if !frozen.is_lineage_kept() {
            self.lineage.forget(uuid);
        }
    }

    /// Ends frozen images, so that the writer can go on. For room the oldest one goes: it holds most that no other needs, and the
    /// writer comes again if that was not enough. An error costs all that need these units.
    pub(super) fn give_up(&self, trouble: &Trouble) {
        let reason = trouble.error.to_string();
        match trouble.error {
            CopyError::Full(_) => {
                if let Some(oldest) = self.images.iter().find(|image| !image.is_lost()) {
                    oldest.lose(&reason);
                }
            }
            CopyError::Read(_) | CopyError::Write(_) => {
                for image in &self.images {
                    if trouble.units.clone().any(|unit| image.needs(unit)) {
                        image.lose(&reason);
                    }
                }
            }
        }
    }
}
