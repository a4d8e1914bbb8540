//! The images that a server offers, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use nbd_export::export::{Export, ExportInfo};
use nbd_export::server::{AllowLists, Client, Exports, Found, Offer};

/// Exports by name, and who may have which.
pub(crate) struct Shelf {
    exports: BTreeMap<String, Arc<dyn Export>>,
    access: AllowLists,
}

impl Shelf {
    /// Offers these exports to those on their lists.
    pub(crate) fn new(exports: BTreeMap<String, Arc<dyn Export>>, access: AllowLists) -> Self {
        Self { exports, access }
    }

    /// Their names, and whether they can be written to.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        let exports = self.exports.iter();
        exports.map(|(name, export)| (name.as_str(), export.info().writable))
    }

    fn offered(&self, client: &Client) -> impl Iterator<Item = (&String, &Arc<dyn Export>, ExportInfo)> {
        let exports = self.exports.iter();
        let with_info = exports.map(|(name, export)| (name, export, export.info()));
        with_info.filter(|(name, _, info)| {
            client.audience.may_have(info.writable) && self.access.admit(name, client)
        })
    }
}

impl Exports for Shelf {
    fn offers(&self, client: &Client) -> Vec<Offer> {
        let offer = |(name, _, info): (&String, &Arc<dyn Export>, ExportInfo)| Offer {
            name: name.clone(),
            description: info.description,
            writable: info.writable,
        };
        self.offered(client).map(offer).collect()
    }

    fn open(&self, name: &str, client: &Client) -> Option<Found> {
        let mut offered = self.offered(client);
        if !name.is_empty() {
            let (name, export, _) = offered.find(|(known, _, _)| *known == name)?;
            return Some(Found::of(name, export));
        }
        match (offered.next(), offered.next()) {
            (Some((name, export, _)), None) => Some(Found::of(name, export)),
            _ => None,
        }
    }
}
