//! What can go wrong with a server.

use std::io;
use std::sync::Arc;

use nbd_export::proto::constants::{OptionCode, OptionReplyCode};
use nbd_export::proto::transmission::{RuleBroken, ServerError};
use nbd_export::proto::{Errno, PeerIncompatible, ProtocolError};
use nbd_export::tls::{TlsError, is_of_tls};

use crate::error::{Error, ErrorKind};

/// Why an NBD request, or a connection, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NbdError {
    /// The server cannot be reached, or the connection broke.
    #[error("the connection to the server failed: {0}")]
    Io(Arc<io::Error>),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// No answer within the deadline.
    #[error("the server did not answer in time")]
    Timeout,
    /// There is no TLS with the server, and there shall be nothing else.
    #[error(transparent)]
    Tls(Arc<TlsError>),
    /// The server broke the protocol, cannot do what is needed, or refused an option.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// The server answered a request with an error.
    #[error(transparent)]
    Server(ServerError),
    /// The request cannot be sent to this export.
    #[error("the request does not fit the export: {0}")]
    Unfit(RuleBroken),
    /// A lost connection could not be taken up again in the time that was given.
    #[error("the server did not come back: {0}")]
    NotBack(Box<Self>),
    /// A server that came back, or another connection to it, offers something else under the name.
    #[error("the export is not what it was, {0} differs")]
    Changed(&'static str),
    /// Another frozen image, or none, stands under the name (law P5).
    #[error("the frozen image does not stand under its name any more")]
    Replaced,
}

impl NbdError {
    /// Whether another connection could do better.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Io(_) | Self::Closed | Self::Timeout => true,
            Self::Tls(error) => error.is_connection_lost(),
            _ => false,
        }
    }

    /// Whether what was refused now may be granted later.
    pub(super) fn may_pass(&self) -> bool {
        let shutting_down = matches!(
            self,
            Self::Protocol(ProtocolError::Refused(refused)) if refused.reply == OptionReplyCode::ERR_SHUTDOWN
        );
        self.is_connection_lost() || shutting_down
    }

    /// Whether this is said of the export, and not of one connection.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Changed(_) | Self::Replaced)
    }

    /// Whether the server knows no metadata contexts, in one of the ways to say so.
    pub(super) fn knows_no_contexts(&self) -> bool {
        match self {
            Self::Protocol(ProtocolError::Incompatible(why)) => {
                matches!(
                    why,
                    PeerIncompatible::NoContexts | PeerIncompatible::NotFixedNewstyle
                )
            }
            Self::Protocol(ProtocolError::Refused(refused)) => {
                refused.option == OptionCode::LIST_META_CONTEXT && refused.reply == OptionReplyCode::ERR_UNSUP
            }
            _ => false,
        }
    }

    /// Whether the server says that the export has ended (law H6).
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Server(error) if error.errno == Errno::Shutdown)
    }

    /// Whether the server has no export of that name for us.
    pub fn is_unknown_export(&self) -> bool {
        match self {
            Self::Protocol(ProtocolError::Refused(refused)) => refused.reply == OptionReplyCode::ERR_UNKNOWN,
            Self::Protocol(ProtocolError::ExportNameRefused) => true,
            _ => false,
        }
    }
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        // A server tells only after the handshake that it does not believe us.
        if is_of_tls(&error) {
            return TlsError::Handshake(error).into();
        }
        Self::Io(Arc::new(error))
    }
}

impl From<TlsError> for NbdError {
    fn from(error: TlsError) -> Self {
        Self::Tls(Arc::new(error))
    }
}

impl From<ProtocolError> for NbdError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl From<NbdError> for Error {
    fn from(error: NbdError) -> Self {
        let (kind, message) = match &error {
            NbdError::Server(server) if server.errno == Errno::Shutdown => {
                (ErrorKind::FrozenImageGone, "the frozen image has ended")
            }
            NbdError::Replaced => (ErrorKind::FrozenImageGone, "the frozen image is gone"),
            NbdError::Changed(_) => (
                ErrorKind::ExportChanged,
                "the server came back with another export",
            ),
            NbdError::Io(_) | NbdError::Closed | NbdError::Timeout | NbdError::NotBack(_) => {
                (ErrorKind::HostLost, "the host is lost")
            }
            NbdError::Protocol(ProtocolError::Refused(_) | ProtocolError::ExportNameRefused)
            | NbdError::Server(_) => (ErrorKind::HostRefused, "the host refuses"),
            NbdError::Protocol(ProtocolError::Incompatible(_)) => {
                (ErrorKind::HostIncompatible, "the host cannot be used")
            }
            NbdError::Protocol(_) => (
                ErrorKind::HostMisbehaved,
                "the host does not keep the NBD protocol",
            ),
            NbdError::Tls(why) if why.is_connection_lost() => (ErrorKind::HostLost, "the host is lost"),
            NbdError::Tls(why) if why.is_of_peer() => (
                ErrorKind::HostUntrusted,
                "the host and this machine do not trust each other",
            ),
            NbdError::Tls(_) => (ErrorKind::Usage, "TLS cannot be used"),
            NbdError::Unfit(_) => (ErrorKind::HostRefused, "the export cannot do what is needed"),
        };
        Self::new(kind, message).caused_by(error)
    }
}
