//! What a server offers to whom.

use std::net::IpAddr;
use std::sync::Arc;

use crate::export::Export;
use crate::proto::handshake::Refusal;

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

/// Who asks: as much as is proven of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// Whom its listener serves.
    pub audience: Audience,
    /// Where it comes from, an IPv4 address in IPv6 clothes as an IPv4 address; `None`: this machine, through a Unix socket.
    pub address: Option<IpAddr>,
    /// The names in the certificate that it proved to own; none before TLS.
    pub names: Vec<String>,
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

/// An export that a client may have.
#[derive(Clone)]
pub struct Found {
    /// Its own name, whatever it was asked for by.
    pub name: String,
    /// The export.
    pub export: Arc<dyn Export>,
    /// Whether the disk below is known to rotate.
    pub rotational: bool,
    /// Whether it was made for the one who asked: another connection that asks by the same name gets another one.
    pub made: bool,
}

impl Found {
    /// An export of whose disk nothing is known.
    pub fn of(name: &str, export: &Arc<dyn Export>) -> Self {
        Self {
            name: name.to_owned(),
            export: Arc::clone(export),
            rotational: false,
            made: false,
        }
    }
}

/// The exports that there are at the moment. But for [`Exports::make`] and [`Exports::unmake`] no call blocks, and none asks anything of what is behind an export.
pub trait Exports: Send + Sync {
    /// All exports for that client.
    fn offers(&self, client: &Client) -> Vec<Offer>;

    /// The export of that name, if there is one for that client. The empty name is the sole export, if there is exactly one
    /// for it.
    fn open(&self, name: &str, client: &Client) -> Option<Found>;

    /// Whether a new export is made for that client when it enters one by that name.
    fn makes(&self, _name: &str, _client: &Client) -> bool {
        false
    }

    /// Makes it. Blocks, for as long as it takes.
    ///
    /// # Errors
    /// It is not to be had, now or at all.
    fn make(&self, _name: &str, _client: &Client) -> Result<Found, Refusal> {
        Err(Refusal::Unknown)
    }

    /// Ends what was made for a client that was never told of it. Blocks, as well.
    fn unmake(&self, _name: &str) {}
}
