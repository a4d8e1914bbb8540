//! What an examination finds.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is wrong; the system could be told to keep off.
    Note,
    /// It works, and not as well as it should, or not for sure.
    Warning,
    /// This machine uses the LUN: no backup is made from it.
    Danger,
}

/// What it is, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A file system on it is mounted.
    Mounted,
    /// It is swapped to.
    Swap,
    /// A logical volume on it is active.
    VolumeGroup,
    /// It is a member of an md array.
    Array,
    /// Something else was built on it.
    Held,
    /// Somebody has it for itself, and the system does not say who.
    Claimed,
    /// A process may write to it.
    OpenForWriting,
    /// It is one of the paths of a multipath map.
    OnePath,
    /// Other devices have the same name.
    Twin,
    /// It holds something that systems take into use by themselves.
    Attractive,
    /// The kernel would let anybody write to it.
    Writable,
    /// Not everything could be looked at.
    Unseen,
}

/// One thing that is to be said of a LUN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: FindingKind,
    /// The device, or file, that it is about: the LUN, or something on it.
    pub device: String,
    /// What was found.
    pub message: String,
    /// What mends it.
    pub mend: String,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Danger => "danger",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<8} {}\n           {}",
            self.severity, self.message, self.mend
        )
    }
}
