//! The gate of an origin: writers hold it shared from before the first copy until their write has completed, freeze and thaw hold it alone.
//! Whoever waits for room waits outside.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{ArcRwLockWriteGuard, Mutex, RawRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::cow::frozen::Frozen;
use crate::cow::living::Living;

/// See the module. Nobody comes past one who waits to shut it.
pub(super) struct Gate(Arc<RwLock<Living>>);

impl Gate {
    pub(super) fn new(living: Living) -> Self {
        Self(Arc::new(RwLock::new(living)))
    }

    /// Passes it, beside other writers.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, Living> {
        self.0.read()
    }

    /// Has it alone, for a moment. `None`: writers that had passed were not done until then.
    pub(super) fn alone(&self, until: Instant) -> Option<RwLockWriteGuard<'_, Living>> {
        self.0.try_write_until(until)
    }

    /// Shuts it: new writers wait, and those that had passed are done. `None`: they were not until then, and it is open.
    pub(super) fn shut(&self, until: Instant) -> Option<ShutGate> {
        Some(ShutGate {
            living: self.0.try_write_arc_until(until)?,
            made: None,
        })
    }
}

/// A gate that is shut, and the frozen image that was made behind it. Dropped, it is open, and that image is no more.
pub(super) struct ShutGate {
    pub(super) living: ArcRwLockWriteGuard<RawRwLock, Living>,
    made: Option<Arc<Frozen>>,
}

impl ShutGate {
    /// Has the image stand from now on.
    pub(super) fn put(&mut self, frozen: Arc<Frozen>) {
        self.living.images.push(Arc::clone(&frozen));
        self.made = Some(frozen);
    }

    /// Lets writers go on, and leaves the image to whoever asked for it.
    fn open(mut self) -> Option<Arc<Frozen>> {
        self.made.take()
    }
}

impl Drop for ShutGate {
    fn drop(&mut self) {
        // Ahead of the first writer: no old data is kept for it, and nobody has to be waited for.
        if let Some(frozen) = self.made.take() {
            frozen.end("its freeze did not come to its end");
            self.living.remove(&frozen);
        }
    }
}

/// Gates that are shut all together, until whoever comes first opens them all together. They are never shut again.
pub(super) struct ShutGates(Mutex<Option<Vec<ShutGate>>>);

impl ShutGates {
    pub(super) fn new(gates: Vec<ShutGate>) -> Self {
        Self(Mutex::new(Some(gates)))
    }

    /// What stands behind one of them; `None` where they were opened. To be left at once: who opens them waits meanwhile.
    pub(super) fn behind<R>(&self, nth: usize, what: impl FnOnce(&mut ShutGate) -> R) -> Option<R> {
        self.0.lock().as_mut()?.get_mut(nth).map(what)
    }

    /// Opens them, and gives the images that were made; `None` where they were opened before, and there are none.
    pub(super) fn open(&self) -> Option<Vec<Option<Arc<Frozen>>>> {
        let gates = self.0.lock().take()?;
        Some(gates.into_iter().map(ShutGate::open).collect())
    }

    /// Opens them, and nothing is left of the images; tells whether they were shut until now.
    pub(super) fn give_up(&self) -> bool {
        self.0.lock().take().is_some()
    }
}
