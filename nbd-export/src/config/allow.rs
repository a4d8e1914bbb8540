//! Entries of allow lists, as operators write them.

use crate::server::Allowed;

/// Why a text is no entry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllowError {
    /// Most likely a part of a name with a comma, which would let another client in.
    #[error(
        "the entry {0:?} begins or ends with a space, or is empty; a name that has a comma cannot be listed, give a DNS name of \
         the certificate"
    )]
    Blank(String),
    /// A network that is none.
    #[error("{0} is no network, and no name has a slash")]
    NoNetwork(String),
}

/// An entry.
///
/// # Errors
/// [`AllowError`]
pub fn allowed(entry: &str) -> Result<Allowed, AllowError> {
    if entry.trim() != entry || entry.is_empty() {
        return Err(AllowError::Blank(entry.to_owned()));
    }
    let Ok(allowed) = entry.parse::<Allowed>();
    match &allowed {
        Allowed::Name(name) if name.contains('/') => Err(AllowError::NoNetwork(entry.to_owned())),
        _ => Ok(allowed),
    }
}
