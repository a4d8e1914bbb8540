//! Metadata contexts: their names, the queries for them, and the ids that a connection gives them.

use std::fmt;

use super::error::StringError;
use super::text::checked;

/// The full name of a context, `namespace:leaf`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContextName(String);

impl ContextName {
    /// A name.
    ///
    /// # Errors
    /// It is not `namespace:leaf`, is longer than 4096 bytes or holds a NUL.
    pub fn new(name: &str) -> Result<Self, StringError> {
        Self::from_wire(name.as_bytes())
    }

    /// A name as it travelled.
    pub(super) fn from_wire(bytes: &[u8]) -> Result<Self, StringError> {
        let name = checked(bytes)?;
        match name.split_once(':') {
            Some((namespace, _)) if !namespace.is_empty() => Ok(Self(name.to_owned())),
            _ => Err(StringError::NoNamespace),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a listing with `query` shows this context: its name, or a prefix of it that ends at a colon
    /// (`base:`, `x-volmap:`, `x-volmap:disk:`).
    pub fn is_listed_by(&self, query: &Self) -> bool {
        self == query || (query.0.ends_with(':') && self.0.starts_with(&query.0))
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a connection calls a context; drawn anew with every selection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContextId(pub u32);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A context that a session has selected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SelectedContext {
    /// Its id on this connection.
    pub id: ContextId,
    /// Its name.
    pub name: ContextName,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ContextName {
        ContextName::new(text).unwrap()
    }

    #[test]
    fn a_name_needs_a_namespace() {
        assert_eq!(ContextName::new("plain"), Err(StringError::NoNamespace));
        assert_eq!(ContextName::new(":leaf"), Err(StringError::NoNamespace));
        assert!(ContextName::new("base:").is_ok());
    }

    #[test]
    fn wildcards_end_at_a_colon() {
        let disk = name("x-volmap:disk:naa:5000");
        for query in [
            "x-volmap:",
            "x-volmap:disk:",
            "x-volmap:disk:naa:",
            "x-volmap:disk:naa:5000",
        ] {
            assert!(disk.is_listed_by(&name(query)), "{query}");
        }
        for query in ["base:", "x-volmap:disk", "x-volmap:d", "x-volmap:disk:naa:50"] {
            assert!(!disk.is_listed_by(&name(query)), "{query}");
        }
    }
}
