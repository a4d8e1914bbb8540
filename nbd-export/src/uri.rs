//! NBD URIs, as the NBD project specifies them (doc/uri.md): `nbd://host[:port]/export` and
//! `nbd+unix:///export?socket=path`.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};

pub use crate::proto::constants::DEFAULT_PORT;
use crate::proto::{ExportName, StringError};

/// Everything but the unreserved characters of RFC 3986 and the slash.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');
/// Export names, where an `@` tells the parts of a name apart and stands for itself.
const EXPORT: &AsciiSet = &PATH.remove(b'@');

/// Where a server is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum NbdAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host name or address (an IPv6 address without brackets), and a port.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A server and an export of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NbdUri {
    /// Where the server is.
    pub address: NbdAddress,
    /// The export; empty for the default one.
    pub export: ExportName,
}

/// Why a text is no NBD URI that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// No scheme, or one of something else.
    #[error("an NBD URI begins with nbd:// or nbd+unix://")]
    Scheme,
    /// A scheme that the specification has, and this program has not.
    #[error("{0}:// is not built yet: only nbd:// and nbd+unix:// are (no TLS, no vsock, no ssh)")]
    Unsupported(String),
    /// `nbd://` without a host.
    #[error("nbd:// needs a host: nbd://HOST[:PORT]/EXPORT")]
    NoHost,
    /// The host is no name or address, or would be taken for an option by a program.
    #[error("{0} is no host")]
    BadHost(String),
    /// The port is no number from 1 to 65535.
    #[error("{0} is no port")]
    BadPort(String),
    /// `nbd+unix://` without `?socket=`.
    #[error("nbd+unix:// needs a socket: nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    /// Something between `//` and the path of a `nbd+unix` URI.
    #[error("nbd+unix:// takes no host: nbd+unix:///EXPORT?socket=PATH, with three slashes")]
    HostForUnix,
    /// A user name, which stands for a TLS identity.
    #[error("a user name in an NBD URI is for TLS, which is not built yet")]
    User,
    /// A parameter that the scheme does not have, or one that is given twice.
    #[error("the parameter {0} is not known here")]
    Parameter(String),
    /// A percent escape that is none, or text that is not UTF-8.
    #[error("the percent escapes of {0} do not give UTF-8 text")]
    Escape(String),
    /// The export name cannot be sent.
    #[error("the export name cannot be used: {0}")]
    Export(#[from] StringError),
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let unix = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => false,
            "nbd+unix" => true,
            other @ ("nbds" | "nbds+unix" | "nbd+vsock" | "nbds+vsock" | "nbd+ssh" | "nbds+ssh") => {
                return Err(UriError::Unsupported(other.to_owned()));
            }
            _ => return Err(UriError::Scheme),
        };
        // A fragment has no meaning in an NBD URI.
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(UriError::User);
        }
        let socket = socket_parameter(query, unix)?;
        let address = match (unix, socket) {
            (true, _) if !authority.is_empty() => return Err(UriError::HostForUnix),
            (true, Some(socket)) => NbdAddress::Unix(socket),
            (true, None) => return Err(UriError::NoSocket),
            (false, _) => tcp(authority)?,
        };
        Ok(Self {
            address,
            export: ExportName::new(&decoded(path)?)?,
        })
    }
}

/// The value of `socket`, the only parameter there is.
fn socket_parameter(query: &str, unix: bool) -> Result<Option<PathBuf>, UriError> {
    let mut socket = None;
    for parameter in query.split('&').filter(|p| !p.is_empty()) {
        match parameter.split_once('=') {
            Some(("socket", path)) if unix && socket.is_none() && !path.is_empty() => {
                socket = Some(PathBuf::from(decoded(path)?));
            }
            _ => return Err(UriError::Parameter(parameter.to_owned())),
        }
    }
    Ok(socket)
}

fn tcp(authority: &str) -> Result<NbdAddress, UriError> {
    let bad = || UriError::BadHost(authority.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']').ok_or_else(bad)?;
            address.parse::<Ipv6Addr>().map_err(|_| bad())?;
            let port = rest
                .strip_prefix(':')
                .or(rest.is_empty().then_some(""))
                .ok_or_else(bad)?;
            (address.to_owned(), port)
        }
        None => {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            (decoded(host)?, port)
        }
    };
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    if host.starts_with('-') || host.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(bad());
    }
    let port = match port {
        "" => DEFAULT_PORT,
        number => match number.parse() {
            Ok(port) if port > 0 && !number.starts_with('+') => port,
            _ => return Err(UriError::BadPort(number.to_owned())),
        },
    };
    Ok(NbdAddress::Tcp { host, port })
}

fn decoded(text: &str) -> Result<String, UriError> {
    let bad = || UriError::Escape(text.to_owned());
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        if !after
            .as_bytes()
            .get(..2)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        {
            return Err(bad());
        }
        rest = after;
    }
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| bad())
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = utf8_percent_encode(self.export.as_str(), EXPORT);
        match &self.address {
            NbdAddress::Unix(path) => write!(f, "nbd+unix:///{export}?socket={}", encoded_path(path)),
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            NbdAddress::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}

fn encoded_path(path: &Path) -> impl fmt::Display {
    percent_encode(path.as_os_str().as_encoded_bytes(), PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NbdUri, UriError> {
        text.parse()
    }

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri {
            address: NbdAddress::Tcp {
                host: host.into(),
                port,
            },
            export: ExportName::new(export).unwrap(),
        }
    }

    fn unix(path: &str, export: &str) -> NbdUri {
        NbdUri {
            address: NbdAddress::Unix(path.into()),
            export: ExportName::new(export).unwrap(),
        }
    }

    #[test]
    fn what_the_specification_shows_is_read() {
        assert_eq!(parse("nbd://example.com"), Ok(tcp("example.com", 10809, "")));
        assert_eq!(
            parse("nbd://example.com:9999/disk"),
            Ok(tcp("example.com", 9999, "disk"))
        );
        assert_eq!(parse("NBD://[::1]/a%20b"), Ok(tcp("::1", 10809, "a b")));
        assert_eq!(parse("nbd://[::1]:1//a/b"), Ok(tcp("::1", 1, "/a/b")));
        assert_eq!(parse("nbd+unix:///?socket=/run/x"), Ok(unix("/run/x", "")));
        assert_eq!(
            parse("nbd+unix:///vm@1?socket=/a%3Db%20c#x"),
            Ok(unix("/a=b c", "vm@1"))
        );
    }

    #[test]
    fn what_is_written_is_read_again() {
        for uri in [
            tcp("::1", 7, "a/b ü"),
            tcp("h", 10809, ""),
            unix("/a b/c?d&e", "vm@monday"),
        ] {
            assert_eq!(parse(&uri.to_string()), Ok(uri));
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert_eq!(parse("http://x"), Err(UriError::Scheme));
        assert_eq!(parse("disk.img"), Err(UriError::Scheme));
        assert_eq!(parse("nbds://x"), Err(UriError::Unsupported("nbds".into())));
        assert_eq!(parse("nbd:///x"), Err(UriError::NoHost));
        assert_eq!(
            parse("nbd://-oProxyCommand=x/"),
            Err(UriError::BadHost("-oProxyCommand=x".into()))
        );
        assert_eq!(parse("nbd://[::1"), Err(UriError::BadHost("[::1".into())));
        for port in ["0", "65536", "x", "+1"] {
            assert_eq!(
                parse(&format!("nbd://h:{port}/")),
                Err(UriError::BadPort(port.into()))
            );
        }
        assert_eq!(parse("nbd+unix:///x"), Err(UriError::NoSocket));
        assert_eq!(parse("nbd+unix://h/x?socket=/s"), Err(UriError::HostForUnix));
        assert_eq!(parse("nbd://u@h/x"), Err(UriError::User));
        assert_eq!(
            parse("nbd://h/?socket=/s"),
            Err(UriError::Parameter("socket=/s".into()))
        );
        assert_eq!(
            parse("nbd+unix:///?socket=/s&tls=1"),
            Err(UriError::Parameter("tls=1".into()))
        );
        assert_eq!(parse("nbd://h/%zz"), Err(UriError::Escape("%zz".into())));
        assert_eq!(parse("nbd://h/%ff"), Err(UriError::Escape("%ff".into())));
        assert_eq!(parse("nbd://h/%00"), Err(UriError::Export(StringError::Nul)));
    }
}
