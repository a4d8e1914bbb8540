//! What a URI says, and how it is written.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use crate::proto::ExportName;

/// Everything but the unreserved characters of RFC 3986 and the slash.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');
/// Export names, where an `@` tells the parts of a name apart and stands for itself.
const EXPORT: &AsciiSet = &PATH.remove(b'@');

/// The name of a server that is reached through a Unix socket.
const LOCAL_NAME: &str = "localhost";

/// Where a server is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum NbdAddress {
    /// A Unix socket. One whose path begins with a NUL is in the abstract namespace.
    Unix(PathBuf),
    /// A host name or address (an IPv6 address without brackets), and a port.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
}

/// How TLS is spoken.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TlsParameters {
    /// The TLS directory (`tls-certificates`), where the URI names one.
    pub directory: Option<PathBuf>,
    /// The name that the server's certificate must have (`tls-hostname`), where it is another than that of the host.
    pub hostname: Option<String>,
    /// The TLS directory that somebody else names where the URI names none. It is no part of the URI, and not printed with it.
    pub fallback: Option<PathBuf>,
}

impl TlsParameters {
    /// The TLS directory.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref().or(self.fallback.as_deref())
    }
}

/// A server and an export of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NbdUri {
    /// Where the server is.
    pub address: NbdAddress,
    /// The export; empty for the default one.
    pub export: ExportName,
    /// `nbds`: all goes through TLS, or nothing goes.
    pub tls: Option<TlsParameters>,
}

impl NbdUri {
    /// The name that the server's certificate must have.
    pub fn server_name(&self) -> &str {
        let given = self.tls.as_ref().and_then(|tls| tls.hostname.as_deref());
        given.unwrap_or(match &self.address {
            NbdAddress::Unix(_) => LOCAL_NAME,
            NbdAddress::Tcp { host, .. } => host,
        })
    }

    /// The same, with a TLS directory where TLS is spoken and none is named.
    #[must_use]
    pub fn or_tls_directory(mut self, directory: Option<&Path>) -> Self {
        if let Some(tls) = &mut self.tls {
            tls.fallback = directory.map(Path::to_owned);
        }
        self
    }

    /// The same, with another TLS directory than the one that it names, where TLS is spoken.
    #[must_use]
    pub fn with_tls_directory(mut self, directory: &Path) -> Self {
        if let Some(tls) = &mut self.tls {
            tls.directory = None;
            tls.fallback = Some(directory.to_owned());
        }
        self
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let export = utf8_percent_encode(self.export.as_str(), EXPORT);
        let mut separator = '?';
        match &self.address {
            NbdAddress::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}?socket={}", encoded(path))?;
                separator = '&';
            }
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}/{export}")?;
            }
            NbdAddress::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}/{export}")?,
        }
        if let Some(tls) = &self.tls {
            if let Some(directory) = &tls.directory {
                write!(f, "{separator}tls-certificates={}", encoded(directory))?;
                separator = '&';
            }
            if let Some(hostname) = &tls.hostname {
                write!(
                    f,
                    "{separator}tls-hostname={}",
                    utf8_percent_encode(hostname, PATH)
                )?;
            }
        }
        Ok(())
    }
}

fn encoded(path: &Path) -> impl fmt::Display {
    percent_encode(path.as_os_str().as_bytes(), PATH)
}
