//! The stores of a frozen image, beside the state that changes them: whoever lists them must not wait for devices.

use std::sync::{Arc, PoisonError, RwLock};

use crate::store::StoreGraph;

/// A graph that is replaced as a whole. Its lock is never held while anything is asked of a device.
pub(super) struct GraphCell(RwLock<Arc<StoreGraph>>);

// A graph is put there whole, so what a panic left under this lock is good.
impl GraphCell {
    pub(super) fn new(graph: StoreGraph) -> Self {
        Self(RwLock::new(Arc::new(graph)))
    }

    pub(super) fn get(&self) -> Arc<StoreGraph> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, graph: StoreGraph) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(graph);
    }
}
