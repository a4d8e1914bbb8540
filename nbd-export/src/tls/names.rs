//! Who a certificate says that its owner is.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The names in a certificate that was verified: its common name, if it has exactly one, and its DNS names. None is a
/// pattern here, whatever is in it, and none with a control character counts: a log and an allow list shall show all of it.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let mut common = certificate.subject().iter_common_name();
    let common = match (common.next(), common.next()) {
        (Some(name), None) => name.as_str().ok(),
        _ => None,
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names);
    let dns = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let mut names = Vec::<String>::new();
    for name in common.into_iter().chain(dns) {
        let shown = !name.is_empty() && !name.chars().any(char::is_control);
        if shown && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}
