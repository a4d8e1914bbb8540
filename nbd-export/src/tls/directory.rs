//! The files of a TLS directory: `ca-cert.pem`, `ca-crl.pem`, and for each side `…-cert.pem` and `…-key.pem`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::error::TlsError;
use super::revocation;

/// Longest file that is read: a bundle of all public authorities has 200 kB, a long revocation list a few MB.
const FILE_MAX: u64 = 16 << 20;

/// What a directory has to hold, as an error tells it.
const NEEDS: &str = "ca-cert.pem, server-cert.pem and server-key.pem for a server; ca-cert.pem, client-cert.pem and \
                     client-key.pem for a client";

/// One side of a connection: what its files are called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Server,
    Client,
}

impl Side {
    fn certificate(self) -> &'static str {
        match self {
            Self::Server => "server-cert.pem",
            Self::Client => "client-cert.pem",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Server => "server-key.pem",
            Self::Client => "client-key.pem",
        }
    }
}

/// A certificate with its chain, its key, and where they came from.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    certificate_path: PathBuf,
    key_path: PathBuf,
}

impl Identity {
    /// What rustls says to the two, with their names.
    pub(super) fn rejected(self, source: rustls::Error) -> TlsError {
        let (certificate, key) = (self.certificate_path, self.key_path);
        match source {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { certificate, key },
            source => TlsError::Unusable {
                certificate,
                key,
                source,
            },
        }
    }
}

/// A TLS directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory<'a>(pub(super) &'a Path);

impl Directory<'_> {
    /// The authorities: certificates signed by others count for nothing.
    pub(super) fn authorities(self) -> Result<Arc<RootCertStore>, TlsError> {
        let path = self.0.join("ca-cert.pem");
        let mut roots = RootCertStore::empty();
        for certificate in all(&path, "certificate")? {
            roots.add(certificate).map_err(|source| TlsError::Authority {
                path: path.clone(),
                source,
            })?;
        }
        Ok(Arc::new(roots))
    }

    /// The revocation lists of these authorities, where there are any.
    pub(super) fn revocation_lists(
        self,
        authorities: &RootCertStore,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let path = self.0.join("ca-crl.pem");
        if is_absent(&path) {
            return Ok(Vec::new());
        }
        let lists = all(&path, "revocation list")?;
        revocation::check(&path, &lists, authorities)?;
        Ok(lists)
    }

    /// Whether there is a certificate for that side, or half of one.
    pub(super) fn has(self, side: Side) -> bool {
        [side.certificate(), side.key()]
            .iter()
            .any(|name| !is_absent(&self.0.join(name)))
    }

    /// Certificate and key of a side.
    pub(super) fn identity(self, side: Side) -> Result<Identity, TlsError> {
        let certificate_path = self.0.join(side.certificate());
        let key_path = self.0.join(side.key());
        let chain = all(&certificate_path, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(pem_error(&key_path, "private key without a password"))?;
        warn_of_readers(&key_path);
        Ok(Identity {
            chain,
            key,
            certificate_path,
            key_path,
        })
    }
}

/// Whether nothing at all has this name. A link that leads nowhere has it: what it should lead to is missed, not unwanted.
fn is_absent(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Everything of a kind in a file, at least one.
fn all<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, TlsError> {
    let text = read(path)?;
    let found = T::pem_slice_iter(&text).collect::<Result<Vec<T>, pem::Error>>();
    let found = found.map_err(pem_error(path, what))?;
    if found.is_empty() {
        return Err(pem_error(path, what)(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn pem_error(path: &Path, what: &'static str) -> impl Fn(pem::Error) -> TlsError {
    move |source| TlsError::Pem {
        path: path.to_owned(),
        what,
        source,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source: io::Error| TlsError::Unreadable {
        path: path.to_owned(),
        needs: NEEDS,
        source,
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let read = file
        .take(FILE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if read as u64 > FILE_MAX {
        return Err(TlsError::TooLong {
            path: path.to_owned(),
            most: FILE_MAX,
        });
    }
    Ok(text)
}

/// Whoever can read a key can be us.
fn warn_of_readers(key: &Path) {
    let mode = std::fs::metadata(key).map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o007 != 0) {
        tracing::warn!(
            key = %key.display(),
            "everybody on this machine can read or change this private key: chmod o= it, and make a new one"
        );
    }
}
