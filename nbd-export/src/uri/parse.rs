//! How a URI is read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;

use super::DEFAULT_PORT;
use super::error::UriError;
use super::model::{NbdAddress, NbdUri, TlsParameters};
use crate::proto::ExportName;

const SOCKET: &str = "socket";
const CERTIFICATES: &str = "tls-certificates";
const HOSTNAME: &str = "tls-hostname";
const VERIFY_PEER: &str = "tls-verify-peer";
const TYPE: &str = "tls-type";
const SET: &str = "set";

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (uri, parameters) = Self::read(text)?;
        parameters.end()?;
        Ok(uri)
    }
}

impl NbdUri {
    /// Reads the URI of a server, or of one of its exports, that may name a set of them, `nbd://host/?set=NAME`: an extension of ours,
    /// which is an unknown parameter to everybody else.
    ///
    /// # Errors
    /// As when a URI is parsed.
    pub fn with_set(text: &str) -> Result<(Self, Option<String>), UriError> {
        let (uri, mut parameters) = Self::read(text)?;
        let set = parameters.text(SET)?;
        parameters.end()?;
        Ok((uri, set))
    }

    /// With the parameters that it has no use for.
    fn read(text: &str) -> Result<(Self, Parameters<'_>), UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let (unix, encrypted) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            other @ ("nbd+vsock" | "nbds+vsock" | "nbd+ssh" | "nbds+ssh") => {
                return Err(UriError::Unsupported(other.to_owned()));
            }
            _ => return Err(UriError::Scheme),
        };
        if rest.contains('#') {
            return Err(UriError::Fragment);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // What stands there may be a password, which no message shall show.
        if authority.contains('@') {
            return Err(UriError::PreSharedKey("USER@".to_owned()));
        }
        let mut parameters = Parameters::read(query)?;
        let address = match unix {
            true if !authority.is_empty() => return Err(UriError::HostForUnix),
            true => NbdAddress::Unix(socket(&mut parameters)?),
            false => tcp(authority)?,
        };
        let tls = if encrypted {
            Some(tls(&mut parameters)?)
        } else {
            None
        };
        let uri = Self {
            address,
            export: ExportName::new(&decoded(path)?)?,
            tls,
        };
        Ok((uri, parameters))
    }
}

/// What stands behind the question mark, and is not used yet.
struct Parameters<'a>(BTreeMap<String, &'a str>);

impl<'a> Parameters<'a> {
    fn read(query: &'a str) -> Result<Self, UriError> {
        let mut found = BTreeMap::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter
                .split_once('=')
                .ok_or_else(|| UriError::Parameter(parameter.to_owned()))?;
            let name = decoded(name)?;
            if found.insert(name.clone(), value).is_some() {
                return Err(UriError::Twice(name));
            }
        }
        Ok(Self(found))
    }

    /// Text, not empty.
    fn text(&mut self, name: &'static str) -> Result<Option<String>, UriError> {
        let Some(value) = self.0.remove(name) else {
            return Ok(None);
        };
        let value = decoded(value)?;
        if value.is_empty() || value.contains('\0') {
            return Err(UriError::Value { name, value });
        }
        Ok(Some(value))
    }

    /// A path, whatever its bytes; a NUL only where `nul_at` allows it.
    fn path(&mut self, name: &'static str, nul_at: Option<usize>) -> Result<Option<PathBuf>, UriError> {
        let Some(value) = self.0.remove(name) else {
            return Ok(None);
        };
        let bytes = bytes(value)?;
        let nul = bytes
            .iter()
            .enumerate()
            .any(|(at, byte)| *byte == 0 && nul_at != Some(at));
        if nul || bytes.iter().all(|byte| *byte == 0) {
            let value = value.to_owned();
            return Err(UriError::Value { name, value });
        }
        Ok(Some(OsString::from_vec(bytes).into()))
    }

    /// Nothing may be left.
    fn end(self) -> Result<(), UriError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) if name == "tls-psk-file" || name == "tls-username" => {
                Err(UriError::PreSharedKey(name))
            }
            Some(name) if [CERTIFICATES, HOSTNAME, VERIFY_PEER, TYPE].contains(&name.as_str()) => {
                Err(UriError::NotEncrypted(name))
            }
            Some(name) => Err(UriError::Parameter(name)),
        }
    }
}

fn socket(parameters: &mut Parameters<'_>) -> Result<PathBuf, UriError> {
    // A NUL in the first place stands for the abstract namespace.
    parameters.path(SOCKET, Some(0))?.ok_or(UriError::NoSocket)
}

fn tls(parameters: &mut Parameters<'_>) -> Result<TlsParameters, UriError> {
    let directory = parameters.path(CERTIFICATES, None)?;
    let hostname = parameters.text(HOSTNAME)?;
    if let Some(value) = hostname
        .clone()
        .filter(|name| ServerName::try_from(name.as_str()).is_err())
    {
        let name = HOSTNAME;
        return Err(UriError::Value { name, value });
    }
    match parameters.text(VERIFY_PEER)?.as_deref() {
        None | Some("1") => {}
        Some("0") => return Err(UriError::Unverified(format!("{VERIFY_PEER}=0"))),
        Some(value) => {
            let (name, value) = (VERIFY_PEER, value.to_owned());
            return Err(UriError::Value { name, value });
        }
    }
    match parameters.text(TYPE)?.as_deref() {
        None | Some("x509") => {}
        Some("psk") => return Err(UriError::PreSharedKey(format!("{TYPE}=psk"))),
        Some("anon") => return Err(UriError::Unverified(format!("{TYPE}=anon"))),
        Some(value) => {
            let (name, value) = (TYPE, value.to_owned());
            return Err(UriError::Value { name, value });
        }
    }
    Ok(TlsParameters {
        directory,
        hostname,
        fallback: None,
    })
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
            let host = decoded(host)?;
            // One that begins like an option has had a program run for it (CVE-2025-14946).
            let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if host.starts_with('-') || !host.chars().all(named) {
                return Err(bad());
            }
            (host, port)
        }
    };
    if host.is_empty() {
        return Err(UriError::NoHost);
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
    String::from_utf8(bytes(text)?).map_err(|_| UriError::Escape(text.to_owned()))
}

fn bytes(text: &str) -> Result<Vec<u8>, UriError> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        if !after
            .as_bytes()
            .get(..2)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        {
            return Err(UriError::Escape(text.to_owned()));
        }
        rest = after;
    }
    Ok(percent_decode_str(text).collect())
}
