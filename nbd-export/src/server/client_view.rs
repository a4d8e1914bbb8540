//! What one client sees of the exports.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::admission::Ticket;
use super::exports::{Client, Exports, Found};
use crate::export::BASE_ALLOCATION;
use crate::proto::handshake::{Catalogue, Entry, Refusal};
use crate::proto::option::ListedExport;
use crate::proto::{ContextName, ExportInfo, ExportName, HeaderStyle, TransmissionFlags};

/// The exports that the client asked for, by the names that it used: no more than there are.
pub(super) type LookedUp = BTreeMap<String, Found>;

/// The exports, as the handshake of one client asks for them.
///
/// All answers about one name are about the same export: between two options of a client a frozen image may be thawed and
/// another made under its name, and contexts selected on the first must not meet the second. A client that holds on
/// to the first is told by ESHUTDOWN that it is gone.
pub(super) struct ClientView<'a> {
    pub(super) exports: &'a dyn Exports,
    pub(super) client: &'a Client,
    pub(super) ticket: &'a Ticket,
    pub(super) looked_up: RefCell<LookedUp>,
}

impl ClientView<'_> {
    fn look_up(&self, name: &str) -> Result<Found, Refusal> {
        let mut looked_up = self.looked_up.borrow_mut();
        if let Some(found) = looked_up.get(name) {
            return Ok(found.clone());
        }
        if self.exports.makes(name, self.client) {
            return Err(Refusal::OnEntry);
        }
        let found = self.exports.open(name, self.client).ok_or(Refusal::Unknown)?;
        looked_up.insert(name.to_owned(), found.clone());
        Ok(found)
    }
}

impl ClientView<'_> {
    /// Whether it is made when the client enters it, and is not made yet.
    fn is_to_be_made(&self, name: &str) -> bool {
        !self.looked_up.borrow().contains_key(name) && self.exports.makes(name, self.client)
    }

    fn take_seat(&self, name: &str) -> Result<(), Refusal> {
        if self.ticket.take_seat() {
            return Ok(());
        }
        if self.ticket.is_news() {
            tracing::warn!(
                export = name,
                "refused: there are as many connections as --max-connections allows"
            );
        }
        Err(Refusal::Busy)
    }
}

impl Catalogue for ClientView<'_> {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        let offers = self.exports.offers(self.client);
        Ok(offers
            .into_iter()
            .filter_map(|offer| {
                Some(ListedExport {
                    name: ExportName::new(&offer.name).ok()?,
                    description: offer.description,
                })
            })
            .collect())
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, Refusal> {
        let found = self.look_up(name)?;
        self.take_seat(name)?;
        let info = found.export.info();
        Ok(ExportInfo {
            flags: flags(&info, &found),
            name: ExportName::new(&found.name).map_err(|_| Refusal::Unknown)?,
            size: info.size,
            block: info.block,
            description: info.description,
        })
    }

    /// Nothing is made for a client that may still go away, and no seat is taken by one that gets none.
    fn enter(&self, name: &str) -> Result<Entry, Refusal> {
        if self.is_to_be_made(name) {
            self.take_seat(name)?;
            return Ok(Entry::Awaited);
        }
        self.describe(name).map(Entry::Ready)
    }

    /// Of what is not made yet, only that which every export has can be selected.
    fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
        if self.is_to_be_made(name) {
            return Ok(ContextName::new(BASE_ALLOCATION).into_iter().collect());
        }
        let found = self.look_up(name)?;
        let contexts = found.export.contexts();
        Ok(contexts
            .iter()
            .filter(|context| !context.extended || style == HeaderStyle::Extended)
            .filter_map(|context| ContextName::new(&context.name).ok())
            .collect())
    }
}

/// What an export can. Several connections are safe for each but one that was made for its client: a frozen one never changes, and every writable one has one
/// writer behind all connections, whose flush covers what any of them wrote.
fn flags(info: &crate::export::ExportInfo, found: &Found) -> TransmissionFlags {
    let always = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_DF
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    let only = |condition, flags| if condition { flags } else { TransmissionFlags::NONE };
    let writing =
        TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES;
    always
        | only(found.rotational, TransmissionFlags::ROTATIONAL)
        // Clients open the others by the name that they used for the first.
        | only(!found.made, TransmissionFlags::CAN_MULTI_CONN)
        | only(info.fast_zero, TransmissionFlags::SEND_FAST_ZERO)
        | only(info.writable, writing)
        | only(!info.writable, TransmissionFlags::READ_ONLY)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::export::FrozenExport;
    use crate::export::scripted::Scripted;
    use crate::server::admission::{Admission, Peer};
    use crate::server::limits::Limits;
    use crate::server::{Audience, Offer};

    /// Another frozen image under the same name, each time somebody asks; called `sole`, also where it is asked for by the empty name.
    struct Refrozen {
        rotational: bool,
    }

    impl Exports for Refrozen {
        fn offers(&self, _: &Client) -> Vec<Offer> {
            Vec::new()
        }

        fn open(&self, name: &str, _: &Client) -> Option<Found> {
            Some(Found {
                name: if name.is_empty() { "sole" } else { name }.to_owned(),
                export: Arc::new(FrozenExport::new(Scripted::drawn())),
                rotational: self.rotational,
                made: false,
            })
        }
    }

    /// Calls `look` with the view of a client.
    fn viewed(rotational: bool, look: impl FnOnce(&ClientView<'_>)) {
        let (ticket, _stay) = Admission::new(&Limits::default()).enter(Peer::Unnamed);
        look(&ClientView {
            exports: &Refrozen { rotational },
            client: &Client {
                audience: Audience { writable: false },
                address: None,
                names: Vec::new(),
            },
            ticket: &ticket,
            looked_up: RefCell::default(),
        });
    }

    #[test]
    fn one_handshake_sees_one_frozen_image_of_a_name() {
        viewed(false, |view| {
            let contexts = |name| view.contexts(name, HeaderStyle::Extended).unwrap();
            let first = contexts("vm");
            view.describe("vm").unwrap();
            assert_eq!(contexts("vm"), first);
            assert_ne!(contexts("other"), first);
            assert_eq!(
                contexts("vm"),
                first,
                "a question about another export changes nothing"
            );
            let found = view.looked_up.borrow().get("vm").cloned().unwrap();
            let names: Vec<ContextName> = found
                .export
                .contexts()
                .iter()
                .map(|context| ContextName::new(&context.name).unwrap())
                .collect();
            assert_eq!(names, first, "the session gets the export that was described");
        });
    }

    #[test]
    fn an_export_has_its_own_name_whatever_it_is_asked_for_by() {
        viewed(false, |view| {
            assert_eq!(view.describe("").unwrap().name.as_str(), "sole");
            assert_eq!(view.describe("vm").unwrap().name.as_str(), "vm");
        });
    }

    #[test]
    fn only_disks_that_rotate_are_said_to() {
        for rotational in [false, true] {
            viewed(rotational, |view| {
                let flags = view.describe("vm").unwrap().flags;
                assert_eq!(flags.contains(TransmissionFlags::ROTATIONAL), rotational);
            });
        }
    }
}
