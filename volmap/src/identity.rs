//! Names of stores that hold for good: never a path, never an on-disk UUID alone for a disk.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything outside `[A-Za-z0-9._:-]` is percent-encoded in an identity (docs/x-volmap.md, "Identities").
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'_')
    .remove(b'-')
    .remove(b':');

/// Longest encoded identity in bytes.
pub const IDENTITY_MAX: usize = 255;

/// What names a store for good, as `type:value` in its encoded form: `naa:5000c500deadbeef`,
/// `serial:VBLK1`, `id:lun0` (given by the operator), `xfs:<uuid>`, `file:<name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity(String);

/// Why a text is no identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nothing before or after the colon.
    #[error("an identity is TYPE:VALUE or a plain name, and neither part may be empty")]
    Empty,
    /// The encoded form is longer than [`IDENTITY_MAX`].
    #[error("an identity is at most {IDENTITY_MAX} bytes when encoded")]
    TooLong,
    /// The encoded form holds a byte outside `[A-Za-z0-9._:%-]` or a broken percent escape.
    #[error("an identity holds only letters, digits, '.', '_', ':', '-' and percent escapes")]
    BadEncoding,
}

impl Identity {
    /// An identity from its parts, which are percent-encoded where needed.
    pub fn new(kind: &str, value: &str) -> Result<Self, IdentityError> {
        if kind.is_empty() || value.is_empty() {
            return Err(IdentityError::Empty);
        }
        if !kind
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            return Err(IdentityError::BadEncoding);
        }
        let encoded = format!("{kind}:{}", utf8_percent_encode(value, ENCODED));
        if encoded.len() > IDENTITY_MAX {
            Err(IdentityError::TooLong)
        } else {
            Ok(Self(encoded))
        }
    }

    /// What an operator wrote: `TYPE:VALUE`, or a plain name, which stands for `id:NAME`.
    pub fn from_operator(text: &str) -> Result<Self, IdentityError> {
        match text.split_once(':') {
            Some((kind, value)) => Self::new(kind, value),
            None => Self::new("id", text),
        }
    }

    /// The encoded form, as it stands in context names.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Parses the encoded form, as it stands in context names.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let (kind, value) = text.split_once(':').ok_or(IdentityError::Empty)?;
        let plain = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| IdentityError::BadEncoding)?;
        let identity = Self::new(kind, &plain)?;
        // One spelling only, so that identities compare as text.
        if identity.0 == text {
            Ok(identity)
        } else {
            Err(IdentityError::BadEncoding)
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_of_type_id() {
        assert_eq!(Identity::from_operator("lun0").unwrap().as_str(), "id:lun0");
        assert_eq!(
            Identity::from_operator("naa:5000c5").unwrap().as_str(),
            "naa:5000c5"
        );
    }

    #[test]
    fn encoding_is_canonical() {
        let identity = Identity::new("file", "a b/ü").unwrap();
        assert_eq!(identity.as_str(), "file:a%20b%2F%C3%BC");
        assert_eq!(identity.as_str().parse(), Ok(identity));
        assert_eq!(
            "file:a%20b%2f".parse::<Identity>(),
            Err(IdentityError::BadEncoding)
        );
        assert_eq!("file:".parse::<Identity>(), Err(IdentityError::Empty));
        assert_eq!(Identity::new("a b", "x"), Err(IdentityError::BadEncoding));
    }

    #[test]
    fn length_limit_is_exact() {
        assert!(Identity::new("id", &"x".repeat(IDENTITY_MAX - 3)).is_ok());
        assert_eq!(
            Identity::new("id", &"x".repeat(IDENTITY_MAX - 2)),
            Err(IdentityError::TooLong)
        );
    }
}
