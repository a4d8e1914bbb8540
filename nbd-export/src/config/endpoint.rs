//! Where sockets are when nobody says where.

use std::env;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// Name of the control socket in the runtime directory.
const CONTROL_NAME: &str = "nbd-export.control";

/// A socket of this name in `$XDG_RUNTIME_DIR`, or else in `/run`.
pub fn runtime_path(name: &str) -> PathBuf {
    env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .unwrap_or_else(|| Path::new("/run").to_owned())
        .join(name)
}

/// The control socket: the given one, or the usual one.
pub fn control_path(given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| runtime_path(CONTROL_NAME), Path::to_owned)
}

/// All addresses of `ADDR:PORT`. Unless `beyond_allowed` none may be beyond this machine.
pub(super) fn tcp(option: &str, argument: &str, beyond_allowed: bool) -> Result<Vec<SocketAddr>, Error> {
    let addresses: Vec<SocketAddr> = argument
        .to_socket_addrs()
        .map_err(|error| Error::caused(ErrorKind::Usage, format!("{option} {argument}"), error))?
        .collect();
    if addresses.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{option} {argument}: no address of that name"),
        ));
    }
    for address in &addresses {
        reachable(&format!("{option} {argument}"), *address, beyond_allowed)?;
    }
    Ok(addresses)
}

/// Whether an address may be listened on. Unless `beyond_allowed` none beyond this machine may.
pub(super) fn reachable(what: &str, address: SocketAddr, beyond_allowed: bool) -> Result<(), Error> {
    if beyond_allowed || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "{what}: {address} is reachable from other machines, and without encryption anybody there could read the \
             exports or change what is read: encrypt with --tls-dir, or listen on a loopback address or a Unix socket, \
             or give --insecure-plaintext if that network is trusted"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_wants_the_operators_word() {
        for beyond in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert_eq!(
                tcp("--listen", beyond, false).unwrap_err().kind(),
                ErrorKind::Usage,
                "{beyond}"
            );
            assert_eq!(tcp("--listen", beyond, true).unwrap().len(), 1);
        }
        for near in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(tcp("--listen", near, false).is_ok(), "{near}");
        }
        for broken in ["127.0.0.1", "127.0.0.1:99999", ":", ""] {
            assert_eq!(
                tcp("--listen", broken, true).unwrap_err().kind(),
                ErrorKind::Usage,
                "{broken}"
            );
        }
    }
}
