//! Strings of the protocol: checked when they are made, so that nothing else has to check them.

use std::fmt;

use super::error::StringError;
use super::limits::MAX_STRING;

/// The rules for every string ("Conventions").
pub(super) fn checked(bytes: &[u8]) -> Result<&str, StringError> {
    if bytes.len() > MAX_STRING {
        return Err(StringError::TooLong(bytes.len()));
    }
    if bytes.contains(&0) {
        return Err(StringError::Nul);
    }
    std::str::from_utf8(bytes).map_err(|_| StringError::NotUtf8)
}

/// A text for humans as it travelled: at most 4096 bytes are used. It goes to terminals and logs, so what is not
/// UTF-8 and what could steer a terminal is replaced.
pub(super) fn printable(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_STRING).unwrap_or(bytes);
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// The name of an export; empty for the default one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ExportName(String);

impl ExportName {
    /// A name.
    ///
    /// # Errors
    /// It is longer than 4096 bytes or holds a NUL.
    pub fn new(name: &str) -> Result<Self, StringError> {
        checked(name.as_bytes()).map(|name| Self(name.to_owned()))
    }

    /// A name as it travelled.
    pub(super) fn from_wire(bytes: &[u8]) -> Result<Self, StringError> {
        checked(bytes).map(|name| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that a peer attached to an error: at most 4096 bytes, and safe to print.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ErrorText(String);

impl ErrorText {
    /// A text for the wire, cut to 4096 bytes between two characters (CVE-2020-10761: names of nearly 4096
    /// bytes stand in such texts).
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(MAX_STRING));
        Self(text)
    }

    /// A text as it travelled.
    pub(super) fn from_wire(bytes: &[u8]) -> Self {
        Self::new(printable(bytes))
    }

    /// The text; empty when the peer said nothing.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// ` (text)`, or nothing.
    pub(super) fn in_parentheses(&self) -> String {
        if self.0.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.0)
        }
    }
}

impl fmt::Display for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_length_limit_is_exact() {
        for len in [0, 1, 255, 256, MAX_STRING - 1, MAX_STRING] {
            assert!(ExportName::new(&"n".repeat(len)).is_ok(), "{len}");
        }
        assert_eq!(
            ExportName::new(&"n".repeat(MAX_STRING + 1)),
            Err(StringError::TooLong(MAX_STRING + 1))
        );
    }

    #[test]
    fn names_hold_no_nul_and_are_utf8() {
        assert_eq!(ExportName::new("a\0b"), Err(StringError::Nul));
        assert_eq!(ExportName::from_wire(&[0xff]), Err(StringError::NotUtf8));
    }

    #[test]
    fn error_texts_are_cut_between_characters() {
        let text = ErrorText::new(format!("x{}", "ü".repeat(MAX_STRING)));
        assert_eq!(text.as_str().len(), MAX_STRING - 1);
        assert_eq!(ErrorText::new("e".repeat(MAX_STRING)).as_str().len(), MAX_STRING);
        assert_eq!(
            ErrorText::from_wire(&[0xff; MAX_STRING + 7]).as_str().len() % 3,
            0
        );
    }

    #[test]
    fn a_peer_cannot_steer_the_terminal() {
        assert_eq!(ErrorText::from_wire(b"a\x1b[2Jb\n").as_str(), "a?[2Jb?");
    }
}
