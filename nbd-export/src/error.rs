//! The one error of this crate that reaches an operator, and what its kinds mean to a calling program.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, for programs: the name in `--error-format json` and on the control socket. Control flow matches on this
/// and on nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The command line asks for something that cannot be meant.
    Usage,
    /// A volume, origin, copy area or tag cannot be opened or used.
    Volume,
    /// A listener cannot be opened.
    Listen,
    /// The frozen image cannot be made.
    Freeze,
    /// A command around a freeze failed.
    Hook,
    /// The name of the frozen image is taken.
    NameTaken,
    /// There is no such volume or frozen image.
    UnknownName,
    /// The volume has as many frozen images as it can have, or another freeze of it goes on.
    Busy,
    /// The frozen image is gone.
    Gone,
    /// No agent answers on the control socket, or it does not speak our language.
    Control,
    /// The proxy's daemon does not answer, or refuses.
    Proxy,
    /// No good image came of a backup.
    Backup,
    /// Ranges of the volume could not be read.
    Damaged,
    /// A policy of the backup was missed; its image is good.
    PolicyMissed,
    /// The image that was made is bad.
    ImageBad,
    /// The system failed us.
    System,
}

impl ErrorKind {
    /// The exit code of a program that ends with this (docs/control.md).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Damaged => 3,
            Self::PolicyMissed => 4,
            Self::Gone => 5,
            Self::ImageBad => 6,
            Self::Volume
            | Self::Listen
            | Self::Freeze
            | Self::Hook
            | Self::NameTaken
            | Self::UnknownName
            | Self::Busy
            | Self::Control
            | Self::Proxy
            | Self::Backup
            | Self::System => 1,
        }
    }
}

/// An error with a sentence for the operator, who can do something about it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that has no deeper cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error that `source` caused.
    pub fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// What it means to a program.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What `--error-format json` prints: kind, message and exit code in one object.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "kind": self.kind,
            "message": self.to_string(),
            "exit_code": self.kind.exit_code(),
        })
        .to_string()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        // The causes belong to the sentence: an operator sees nothing else.
        let mut cause = self.source.as_ref().map(|s| s.as_ref() as &dyn StdError);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ErrorKind; 16] = [
        ErrorKind::Usage,
        ErrorKind::Volume,
        ErrorKind::Listen,
        ErrorKind::Freeze,
        ErrorKind::Hook,
        ErrorKind::NameTaken,
        ErrorKind::UnknownName,
        ErrorKind::Busy,
        ErrorKind::Gone,
        ErrorKind::Control,
        ErrorKind::Proxy,
        ErrorKind::Backup,
        ErrorKind::Damaged,
        ErrorKind::PolicyMissed,
        ErrorKind::ImageBad,
        ErrorKind::System,
    ];

    #[test]
    fn the_document_has_every_kind_and_its_exit_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/control.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (_, table) = document.split_once("<!-- error-kinds -->").unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, KINDS.len());
        for kind in KINDS {
            let name = serde_json::to_string(&kind).unwrap().replace('"', "`");
            let row = format!("| {name} | {} |", kind.exit_code());
            assert!(table.contains(&row), "docs/control.md has no row {row}");
        }
    }

    #[test]
    fn causes_belong_to_the_sentence() {
        let error = Error::caused(ErrorKind::Volume, "vm", std::io::Error::other("no such disk"));
        assert_eq!(error.to_string(), "vm: no such disk");
        assert_eq!(
            error.to_json(),
            r#"{"exit_code":1,"kind":"volume","message":"vm: no such disk"}"#
        );
    }
}
