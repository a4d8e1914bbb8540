//! Who may have which volume.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::str::FromStr;

use super::exports::Client;

/// What stands for every client of a Unix socket.
const LOCAL: &str = "unix";

/// One entry of an allow list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// A client that proved by its certificate to have this name: the whole of it, letter by letter.
    Name(String),
    /// Clients whose addresses begin with the same bits.
    Network {
        /// An address of it.
        address: IpAddr,
        /// Bits that count.
        bits: u32,
    },
    /// Every client of a Unix socket, which its file mode lets in.
    Local,
}

impl FromStr for Allowed {
    type Err = Infallible;

    /// `unix`, an address, a network as `ADDRESS/BITS`, or else a name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let name = || Self::Name(text.to_owned());
        let Ok(address) = address.parse::<IpAddr>() else {
            return Ok(if text == LOCAL { Self::Local } else { name() });
        };
        // An IPv4 address in IPv6 clothes is one address with the IPv4 one, in a list as at a socket.
        let plain = address.to_canonical();
        let hidden = if plain.is_ipv4() && address.is_ipv6() {
            96
        } else {
            0
        };
        let most = width(plain);
        let bits = match bits {
            None => Some(most),
            Some(bits) => bits.parse().ok().and_then(|bits: u32| bits.checked_sub(hidden)),
        };
        Ok(match bits {
            Some(bits) if bits <= most => Self::Network { address: plain, bits },
            _ => name(),
        })
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Allowed {
    fn admits(&self, client: &Client) -> bool {
        match (self, client.address) {
            (Self::Name(name), _) => client.names.contains(name),
            (Self::Local, address) => address.is_none(),
            (Self::Network { address, bits }, Some(from)) => {
                same_network(*address, from.to_canonical(), *bits)
            }
            (Self::Network { .. }, None) => false,
        }
    }
}

fn same_network(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (one.to_bits() ^ other.to_bits())
                .checked_shr(32 - bits)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (one.to_bits() ^ other.to_bits())
                .checked_shr(128 - bits)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

/// The allow lists of a server, by volume. A volume without one is for everybody who gets in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AllowLists(BTreeMap<String, Vec<Allowed>>);

impl AllowLists {
    /// Adds entries to the list of a volume.
    pub fn allow(&mut self, volume: &str, allowed: impl IntoIterator<Item = Allowed>) {
        self.0.entry(volume.to_owned()).or_default().extend(allowed);
    }

    /// The volumes that have a list.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether some entry can hold only for clients with certificates.
    pub fn have_names(&self) -> bool {
        let mut entries = self.0.values().flatten();
        entries.any(|entry| matches!(entry, Allowed::Name(_)))
    }

    /// Whether some entry holds for whoever reaches a Unix socket.
    pub fn have_local(&self) -> bool {
        self.0.values().flatten().any(|entry| *entry == Allowed::Local)
    }

    /// Whether a client may have a volume, with its frozen images and its tag.
    pub fn admit(&self, volume: &str, client: &Client) -> bool {
        self.0
            .get(volume)
            .is_none_or(|list| list.iter().any(|entry| entry.admits(client)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Audience;

    fn client(address: Option<&str>, names: &[&str]) -> Client {
        Client {
            audience: Audience { writable: false },
            address: address.map(|address| address.parse().unwrap()),
            names: names.iter().map(ToString::to_string).collect(),
        }
    }

    fn admits(entry: &str, client: &Client) -> bool {
        entry.parse::<Allowed>().unwrap().admits(client)
    }

    /// CVE-2013-6410: an address is no prefix of another one.
    #[test]
    fn addresses_are_compared_whole() {
        for (entry, from, admitted) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.11", false),
            ("10.0.0.1", "10.0.0.10", false),
            ("10.0.0.11", "10.0.0.1", false),
            ("10.0.0.1", "110.0.0.1", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "::ffff:10.0.0.11", false),
            ("10.0.0.0/24", "10.0.0.255", true),
            ("10.0.0.77/24", "10.0.0.255", true),
            ("10.0.0.0/24", "10.0.1.0", false),
            ("10.0.0.0/31", "10.0.0.1", true),
            ("10.0.0.0/31", "10.0.0.2", false),
            ("10.0.0.0/32", "10.0.0.1", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("::ffff:10.0.0.0/120", "10.0.0.9", true),
            ("::ffff:10.0.0.0/120", "10.0.1.9", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("2001:db8::1", "2001:db8::1", true),
            ("2001:db8::1", "2001:db8::11", false),
        ] {
            assert_eq!(
                admits(entry, &client(Some(from), &[])),
                admitted,
                "{entry} {from}"
            );
            assert!(
                !admits(entry, &client(None, &[])),
                "{entry}: a socket has no address"
            );
            assert!(
                !admits(entry, &client(None, &[entry])),
                "{entry}: an address is no name"
            );
        }
    }

    #[test]
    fn names_are_compared_whole() {
        let proxy = client(Some("10.0.0.1"), &["Backup Proxy", "proxy.example"]);
        for (entry, admitted) in [
            ("proxy.example", true),
            ("Backup Proxy", true),
            ("proxy", false),
            ("roxy.example", false),
            ("proxy.example.org", false),
            ("Proxy.example", false),
            ("*.example", false),
            ("*", false),
            ("", false),
            ("unix", false),
        ] {
            assert_eq!(admits(entry, &proxy), admitted, "{entry}");
        }
        // A pattern in a certificate is the name of nobody else.
        assert!(!admits("proxy.example", &client(None, &["*.example"])));
    }

    #[test]
    fn the_clients_of_a_unix_socket_are_local_and_no_others() {
        assert!(admits("unix", &client(None, &[])));
        assert!(!admits("unix", &client(Some("127.0.0.1"), &["unix"])));
    }

    #[test]
    fn what_is_no_network_is_a_name() {
        for name in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "::/129",
            "10.0.0.0/x",
            "::ffff:10.0.0.0/95",
            "10.0.0",
        ] {
            assert_eq!(name.parse(), Ok(Allowed::Name(name.into())));
        }
    }

    #[test]
    fn a_list_is_for_its_volume_alone() {
        let mut lists = AllowLists::default();
        lists.allow("vm", ["proxy".parse().unwrap(), "10.0.0.1".parse().unwrap()]);
        let (by_name, by_address) = (
            client(Some("10.0.0.2"), &["proxy"]),
            client(Some("10.0.0.1"), &[]),
        );
        let nobody = client(Some("10.0.0.3"), &["other"]);
        for (volume, of_name, of_address, of_nobody) in [("vm", true, true, false), ("vm2", true, true, true)]
        {
            assert_eq!(lists.admit(volume, &by_name), of_name);
            assert_eq!(lists.admit(volume, &by_address), of_address);
            assert_eq!(lists.admit(volume, &nobody), of_nobody);
        }
    }
}
