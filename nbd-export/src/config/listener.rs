//! Where `serve` listens, and for whom.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::endpoint::{reachable, runtime_path, tcp};
use super::inherited::{PassedAddress, PassedSocket, Stdio};
use crate::error::{Error, ErrorKind};

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub enum Listener {
    /// A Unix socket; offers everything.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Whether it goes without TLS where other listeners have it.
        plaintext: bool,
    },
    /// A TCP address.
    Tcp {
        /// The address; port 0 draws one.
        address: SocketAddr,
        /// Whether writable exports are offered there.
        writable: bool,
    },
    /// A socket that a service manager listens on; offers everything if it is a Unix socket.
    Passed(Arc<PassedSocket>),
    /// The one client at standard input and output, who gets everything: whoever starts an agent may do what it may.
    Single(Arc<Stdio>),
}

impl Listener {
    /// Whether it offers exports that can be written.
    pub fn offers_writable(&self) -> bool {
        match self {
            Self::Unix { .. } | Self::Single(_) => true,
            Self::Tcp { writable, .. } => *writable,
            Self::Passed(socket) => matches!(socket.address, PassedAddress::Unix(_)),
        }
    }

    /// Why it may be open to users whom nobody chose, where its mode is not ours to set.
    pub fn lets_all_users_in(&self) -> Option<String> {
        match self {
            Self::Passed(socket) => socket.address.lets_all_users_in(),
            _ => None,
        }
    }

    /// Why clients whom nobody chose reach it, where it goes without TLS.
    pub fn lets_strangers_in(&self) -> Option<String> {
        let at_tcp = |address: &SocketAddr| Some(format!("{address} is open to whoever reaches it"));
        match self {
            Self::Tcp { address, .. } => at_tcp(address),
            Self::Passed(socket) => match &socket.address {
                PassedAddress::Tcp(address) => at_tcp(address),
                PassedAddress::Unix(_) => socket.address.lets_all_users_in(),
            },
            Self::Unix { .. } | Self::Single(_) => None,
        }
    }
}

/// The control socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlPath {
    /// Its path.
    pub path: PathBuf,
    /// Whether the operator asked for this very path, so that going on without it would be wrong.
    pub given: bool,
}

/// What was said of listeners, in whatever way.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// Unix sockets, and whether they go without TLS where other listeners have it.
    pub sockets: Vec<(PathBuf, bool)>,
    /// TCP addresses, what each was given by, and whether writable exports are offered there.
    pub tcp: Vec<(&'static str, String, bool)>,
    /// Whether there is TLS.
    pub encrypted: bool,
    /// Whether there may be listeners beyond this machine without it.
    pub insecure_plaintext: bool,
}

impl Endpoints {
    /// All listeners, Unix sockets first; one of the name `default_socket` under the runtime directory if none is given or passed.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn listeners(
        self,
        default_socket: &str,
        passed: Vec<PassedSocket>,
        stdio: Option<Stdio>,
    ) -> Result<Vec<Listener>, Error> {
        if self.encrypted && self.insecure_plaintext {
            return Err(usage(
                "insecure-plaintext: nothing goes in plaintext with TLS, leave it out",
            ));
        }
        let beyond_allowed = self.encrypted || self.insecure_plaintext;
        if !passed.is_empty() {
            if !(self.sockets.is_empty() && self.tcp.is_empty()) || stdio.is_some() {
                return Err(usage(
                    "a service manager passed the sockets to listen on (LISTEN_FDS): give no others beside them, no \
                     --socket, --listen, --origin-listen or --single, and none in [listen] of a file",
                ));
            }
            for socket in &passed {
                if let PassedAddress::Tcp(address) = socket.address {
                    reachable("a socket of LISTEN_FDS", address, beyond_allowed)?;
                }
            }
            return Ok(passed.into_iter().map(Arc::new).map(Listener::Passed).collect());
        }
        if let Some(stdio) = stdio {
            return Ok(vec![Listener::Single(Arc::new(stdio))]);
        }
        let mut found: Vec<Listener> = self
            .sockets
            .into_iter()
            .map(|(path, plaintext)| Listener::Unix { path, plaintext })
            .collect();
        for (given_by, argument, writable) in self.tcp {
            let addresses = tcp(given_by, &argument, beyond_allowed)?;
            let listeners = addresses
                .into_iter()
                .map(|address| Listener::Tcp { address, writable });
            found.extend(listeners);
        }
        if found.is_empty() {
            found.push(Listener::Unix {
                path: runtime_path(default_socket),
                plaintext: false,
            });
        }
        Ok(found)
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
