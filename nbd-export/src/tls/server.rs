//! A server's TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::directory::{Directory, Side};
use super::error::TlsError;
use super::names::names;

/// What a server needs to speak TLS with clients of its authority.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
}

impl ServerTls {
    /// Reads `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, and `ca-crl.pem` where it is there.
    ///
    /// # Errors
    /// A file is missing, or they cannot be used together.
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let files = Directory(directory);
        let authorities = files.authorities()?;
        let lists = files.revocation_lists(&authorities)?;
        let mut verifier = WebPkiClientVerifier::builder_with_provider(authorities, Arc::clone(&provider));
        if !lists.is_empty() {
            // An authority without a list revokes nothing, as with GnuTLS; those that have one all count (`revocation`). Behind
            // a list that is out of date nobody gets in.
            verifier = verifier
                .with_crls(lists)
                .allow_unknown_revocation_status()
                .enforce_revocation_expiration();
        }
        let verifier = verifier.build().map_err(|source| TlsError::Verifier {
            directory: directory.to_owned(),
            source,
        })?;
        let identity = files.identity(Side::Server)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key());
        let mut config = config.map_err(|source| identity.rejected(source))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Shakes hands with a client, which must have a certificate of the authority: the stream inside, and the names that the
    /// client proved to have.
    ///
    /// # Errors
    /// The client speaks no TLS, or has no such certificate. The stream comes back: an alert is on its way that the client should
    /// still hear.
    pub async fn accept<S>(&self, stream: S) -> Result<(TlsStream<S>, Vec<String>), (TlsError, S)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = self.acceptor.accept(stream).into_fallible().await;
        let stream = accepted.map_err(|(error, stream)| (TlsError::Handshake(error), stream))?;
        let (_, session) = stream.get_ref();
        let certificates = session.peer_certificates().unwrap_or_default();
        let names = certificates.first().map(names).unwrap_or_default();
        Ok((stream, names))
    }
}
