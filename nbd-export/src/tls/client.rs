//! A client's TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::directory::{Directory, Side};
use super::error::TlsError;

/// What a client needs to speak TLS with servers of its authority.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
}

impl ClientTls {
    /// Reads `ca-cert.pem`, and where they are there `client-cert.pem` with `client-key.pem`, and `ca-crl.pem`.
    ///
    /// # Errors
    /// A file is missing, or they cannot be used together.
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let files = Directory(directory);
        let authorities = files.authorities()?;
        let lists = files.revocation_lists(&authorities)?;
        let mut verifier = WebPkiServerVerifier::builder_with_provider(authorities, Arc::clone(&provider));
        if !lists.is_empty() {
            // As the server's.
            verifier = verifier
                .with_crls(lists)
                .allow_unknown_revocation_status()
                .enforce_revocation_expiration();
        }
        let verifier = verifier.build().map_err(|source| TlsError::Verifier {
            directory: directory.to_owned(),
            source,
        })?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of TLS 1.2 and 1.3")
            .with_webpki_verifier(verifier);
        let mut config = if files.has(Side::Client) {
            let identity = files.identity(Side::Client)?;
            builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(|source| identity.rejected(source))?
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::disabled();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Shakes hands with a server, whose certificate must be of the authority and for `name`, a host name or address.
    ///
    /// # Errors
    /// The server speaks no TLS, or is not the one that was called.
    pub async fn connect<S>(&self, stream: S, name: &str) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadName(name.to_owned()))?;
        self.connector
            .connect(name, stream)
            .await
            .map_err(TlsError::Handshake)
    }
}
