//! Why a text is no NBD URI that can be used.

use crate::proto::StringError;

/// Why a text is no NBD URI that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// No scheme, or one of something else.
    #[error("an NBD URI begins with nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme,
    /// A scheme that other programs have, and this one has not.
    #[error("{0}:// is not known here: only nbd, nbds, nbd+unix and nbds+unix are")]
    Unsupported(String),
    /// A `#`, which would cut the name of the export.
    #[error("an NBD URI has no fragment: write %23 for a # that belongs to a name")]
    Fragment,
    /// `nbd://` without a host.
    #[error("there is no host: nbd://HOST[:PORT]/EXPORT")]
    NoHost,
    /// The host is no name or address, or would be taken for an option by a program.
    #[error("{0} is no host")]
    BadHost(String),
    /// The port is no number from 1 to 65535.
    #[error("{0} is no port")]
    BadPort(String),
    /// `nbd+unix://` without `?socket=`.
    #[error("there is no socket: nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    /// Something between `//` and the path of a `nbd+unix` URI.
    #[error("nbd+unix:// takes no host: nbd+unix:///EXPORT?socket=PATH, with three slashes")]
    HostForUnix,
    /// A user name or another sign of pre-shared keys.
    #[error("{0}: a user name stands for a pre-shared key (TLS-PSK), and only certificates are supported")]
    PreSharedKey(String),
    /// A parameter that is not known, or not known for this scheme.
    #[error("the parameter {0} is not known here")]
    Parameter(String),
    /// A parameter that is given twice.
    #[error("the parameter {0} is given twice")]
    Twice(String),
    /// A parameter whose value is empty or makes no sense.
    #[error("the parameter {name} cannot be {value:?}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What it was given.
        value: String,
    },
    /// A parameter of TLS in a URI of plain NBD.
    #[error("the parameter {0} is for TLS, and nothing is encrypted with this scheme: write nbds")]
    NotEncrypted(String),
    /// A way of TLS that proves no server.
    #[error(
        "{0}: TLS with a server that proves nothing protects nothing; say with tls-certificates whom to trust"
    )]
    Unverified(String),
    /// A percent escape that is none, or text that is not UTF-8.
    #[error("the percent escapes of {0} do not give UTF-8 text")]
    Escape(String),
    /// The export name cannot be sent.
    #[error("the export name cannot be used: {0}")]
    Export(#[from] StringError),
}
