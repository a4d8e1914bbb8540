//! Why there is no TLS.

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem;
use rustls::server::VerifierBuilderError;

/// Why TLS cannot be used. Each says which file is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is needed is not there, or cannot be read.
    #[error("{}: {source}; a TLS directory is laid out as for GnuTLS: {needs}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The files that are needed.
        needs: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file that cannot be what it should be.
    #[error("{}: more than {most} bytes are no PEM file of this kind", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Longest that is read.
        most: u64,
    },
    /// A file is no PEM, or nothing of its kind is in it.
    #[error("{}: no {what} in PEM form is in it: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// A certificate of an authority cannot be used.
    #[error("{}: this certificate cannot vouch for others: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A revocation list that would not be heeded.
    #[error("{}: {why}", path.display())]
    RevocationList {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The authorities or revocation lists cannot be used.
    #[error("{}: its authorities or revocation lists cannot be used: {source}", directory.display())]
    Verifier {
        /// The TLS directory.
        directory: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// A private key does not belong to its certificate.
    #[error("{} is not the key of the certificate in {}: put the two that were made together there", key.display(), certificate.display())]
    Mismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A certificate or key of ours cannot be used.
    #[error("{} and {} cannot be used: {source}", certificate.display(), key.display())]
    Unusable {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The name to look for in a server's certificate is none.
    #[error("{0} is no name that a certificate can have: give one with tls-hostname")]
    BadName(String),
    /// No directory was named, and nobody is trusted without one.
    #[error(
        "nbds:// needs a TLS directory that says whom to trust: give --tls-dir DIR, or tls-certificates=DIR in the URI"
    )]
    NoDirectory,
    /// The two sides came to no session.
    #[error("TLS failed: {0}")]
    Handshake(#[source] io::Error),
}

impl TlsError {
    /// Whether the connection broke, where another could do better.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Handshake(error) if !is_of_tls(error))
    }

    /// Whether one side did not believe the other, or speaks no TLS that the other speaks.
    pub fn is_of_peer(&self) -> bool {
        matches!(self, Self::Handshake(error) if is_of_tls(error))
    }
}

/// Whether an error on a stream inside TLS is of TLS, and not of the stream below.
pub fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
