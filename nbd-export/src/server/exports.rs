//! What a server offers to whom.

use std::sync::Arc;

use crate::export::Export;

/// Whom a listener serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Audience {
    /// Whether it may have exports that can be written.
    pub writable: bool,
}

impl Audience {
    /// Whether an export is offered there.
    pub fn may_have(self, writable: bool) -> bool {
        self.writable || !writable
    }
}

/// One line of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Name of the export.
    pub name: String,
    /// What it says of itself.
    pub description: String,
    /// Whether it can be written.
    pub writable: bool,
}

/// The exports that there are at the moment. Neither call blocks, and neither asks anything of what is behind an export.
pub trait Exports: Send + Sync {
    /// All exports for that audience.
    fn offers(&self, audience: Audience) -> Vec<Offer>;

    /// The export of that name, if there is one for that audience. The empty name is the sole export, if there is
    /// exactly one.
    fn open(&self, name: &str, audience: Audience) -> Option<Arc<dyn Export>>;
}
