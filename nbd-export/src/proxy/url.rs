//! Where a daemon is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of a daemon where none is given; NBD's own is 10809.
const DEFAULT_PORT: u16 = 10808;

/// The address of a proxy's daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProxyUrl {
    /// A Unix socket.
    Unix(PathBuf),
    /// TLS with certificates on both sides.
    Https {
        /// The host (an IPv6 address without brackets).
        host: String,
        /// The port.
        port: u16,
    },
}

/// Why a text is no such address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a proxy is unix:///PATH, an absolute path, or https://HOST[:PORT]")]
pub struct UrlError;

impl FromStr for ProxyUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if let Some(path) = text
            .strip_prefix("unix://")
            .or(Some(text).filter(|t| t.starts_with('/')))
        {
            let sound = path.starts_with('/') && path.len() > 1 && !path.contains('\0');
            return if sound {
                Ok(Self::Unix(path.into()))
            } else {
                Err(UrlError)
            };
        }
        let authority = text.strip_prefix("https://").ok_or(UrlError)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(UrlError)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError)?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or(UrlError)?),
                };
                (host, port)
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(named) {
            return Err(UrlError);
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().map_err(|_| UrlError)?,
        };
        Ok(Self::Https {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Https { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let https = |host: &str, port| ProxyUrl::Https {
            host: host.into(),
            port,
        };
        for (text, url) in [
            ("/run/p", ProxyUrl::Unix("/run/p".into())),
            ("unix:///run/p", ProxyUrl::Unix("/run/p".into())),
            ("https://proxy", https("proxy", 10808)),
            ("https://proxy:1/", https("proxy", 1)),
            ("https://10.0.0.2:443", https("10.0.0.2", 443)),
            ("https://[::1]:2", https("::1", 2)),
            ("https://[::1]", https("::1", 10808)),
        ] {
            assert_eq!(text.parse(), Ok(url.clone()), "{text}");
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        for bad in [
            "",
            "proxy",
            "http://proxy",
            "unix://run",
            "unix://",
            "https://",
            "https://a:b",
            "https://a:70000",
            "https://[::1",
            "https://[x]:1",
            "https://u@h",
            "https://h/x",
            "/",
        ] {
            assert_eq!(bad.parse::<ProxyUrl>(), Err(UrlError), "{bad}");
        }
    }
}
