//! Where a server is reached, as NBD URIs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::exports::Audience;
use crate::proto::ExportName;
use crate::uri::{NbdAddress, NbdUri, TlsParameters};

/// One open listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// Nobody can be told: an abstract socket, or a connection that is there already.
    Nowhere,
}

/// The open listeners of a server, in the order of the command line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    listeners: Vec<(Address, Audience)>,
    /// Listeners inside TLS, by position.
    secured: BTreeSet<usize>,
}

impl Addresses {
    pub(super) fn push(&mut self, address: Address, audience: Audience) {
        self.listeners.push((address, audience));
    }

    /// Tells that clients of the n-th listener have to use TLS.
    pub(super) fn secure(&mut self, listener: usize) {
        self.secured.insert(listener);
    }

    /// The NBD URI of an export at the first listener that offers it.
    pub fn uri(&self, export: &str, writable: bool) -> Option<String> {
        let offering = self
            .listeners
            .iter()
            .enumerate()
            .filter(|(_, (_, audience))| audience.may_have(writable));
        let (n, address) = offering
            .filter_map(|(n, (address, _))| match address {
                Address::Unix(path) => Some((n, NbdAddress::Unix(path.clone()))),
                Address::Tcp(address) => Some((
                    n,
                    NbdAddress::Tcp {
                        host: address.ip().to_string(),
                        port: address.port(),
                    },
                )),
                Address::Nowhere => None,
            })
            .next()?;
        let export = ExportName::new(export).ok()?;
        let tls = self.secured.contains(&n).then(TlsParameters::default);
        Some(NbdUri { address, export, tls }.to_string())
    }

    /// The bound TCP addresses, for a caller that let the system draw a port.
    pub fn tcp(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().filter_map(|(address, _)| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) | Address::Nowhere => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_the_first_listener_that_offers_an_export() {
        let mut addresses = Addresses::default();
        addresses.push(Address::Nowhere, Audience { writable: true });
        addresses.push(
            Address::Tcp("[::1]:10809".parse().unwrap()),
            Audience { writable: false },
        );
        addresses.push(Address::Unix("/run/a b&c".into()), Audience { writable: true });
        assert_eq!(addresses.uri("vm@1", false).unwrap(), "nbd://[::1]:10809/vm@1");
        assert_eq!(
            addresses.uri("vm", true).unwrap(),
            "nbd+unix:///vm?socket=/run/a%20b%26c"
        );
        addresses.secure(1);
        assert_eq!(addresses.uri("vm@1", false).unwrap(), "nbds://[::1]:10809/vm@1");
        assert_eq!(
            addresses.uri("vm", true).unwrap(),
            "nbd+unix:///vm?socket=/run/a%20b%26c"
        );
        addresses.secure(2);
        assert_eq!(
            addresses.uri("vm", true).unwrap(),
            "nbds+unix:///vm?socket=/run/a%20b%26c"
        );
        assert_eq!(Addresses::default().uri("vm", false), None);
    }
}
