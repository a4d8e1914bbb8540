//! Revocation lists that count. rustls asks one list for each issuer, and none that leaves certificates out; whoever no list
//! speaks of gets in. So a list that would not be asked is refused here, where somebody reads why.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateRevocationListDer;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::error::TlsError;

/// Whether each of the lists in a file will be heeded: it is the only one of an authority that is known, and about all of its
/// certificates.
pub(super) fn check(
    path: &Path,
    lists: &[CertificateRevocationListDer<'_>],
    authorities: &RootCertStore,
) -> Result<(), TlsError> {
    let refused = |why: String| TlsError::RevocationList {
        path: path.to_owned(),
        why,
    };
    let authorities = authorities.subjects();
    let mut issuers: Vec<Vec<u8>> = Vec::new();
    for list in lists {
        let (_, list) = CertificateRevocationList::from_der(list)
            .map_err(|error| refused(format!("a revocation list cannot be read: {error}")))?;
        let (issuer, name) = (list.issuer().as_raw(), list.issuer());
        if !authorities.iter().any(|authority| authority.as_ref() == issuer) {
            return Err(refused(format!(
                "the revocation list of {name} would revoke nothing: ca-cert.pem has no authority of exactly this name; \
                 put its certificate there, or take the list out"
            )));
        }
        if issuers.iter().any(|known| known == issuer) {
            return Err(refused(format!(
                "there are two revocation lists of {name}, and only one would count: keep the newest"
            )));
        }
        let mut extensions = list.extensions().iter();
        if extensions.any(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT) {
            return Err(refused(format!(
                "the revocation list of {name} is for some of its certificates only (it has an issuing distribution \
                 point): put one there that is for all"
            )));
        }
        issuers.push(issuer.to_vec());
    }
    Ok(())
}
