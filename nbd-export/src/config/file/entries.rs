//! Single values of the file: what is wrong with one is said where it stands.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use volmap::cow::OnFull;
use volmap::identity::Identity;

use crate::config::allow::{AllowError, allowed};
use crate::config::arguments::parse_on_full;
use crate::config::size::{SizeError, parse_size};
use crate::server::Allowed;

/// A path that does not depend on where the agent was started.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
pub(super) struct AbsolutePath(PathBuf);

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = &'static str;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        match path.is_absolute() {
            true => Ok(Self(path)),
            false => {
                Err("an absolute path is wanted: another one would depend on where the agent was started")
            }
        }
    }
}

impl From<AbsolutePath> for PathBuf {
    fn from(path: AbsolutePath) -> Self {
        path.0
    }
}

impl AsRef<Path> for AbsolutePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// A pattern of files that does not depend on where the agent was started.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AbsolutePattern(String);

impl TryFrom<String> for AbsolutePattern {
    type Error = &'static str;

    fn try_from(pattern: String) -> Result<Self, Self::Error> {
        match pattern.starts_with('/') {
            true => Ok(Self(pattern)),
            false => Err(
                "a pattern that begins with / is wanted: another one would depend on where the agent was started",
            ),
        }
    }
}

impl From<AbsolutePattern> for String {
    fn from(pattern: AbsolutePattern) -> Self {
        pattern.0
    }
}

/// Who is allowed something.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AllowEntry(pub(super) Allowed);

impl TryFrom<String> for AllowEntry {
    type Error = AllowError;

    fn try_from(text: String) -> Result<Self, AllowError> {
        allowed(&text).map(Self)
    }
}

/// A number of bytes, with its unit.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Bytes(pub(super) u64);

impl TryFrom<String> for Bytes {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        parse_size(&text).map(Self)
    }
}

/// What is done when a copy area is full.
#[derive(Clone, Copy, Default, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Fullness(pub(super) OnFull);

impl TryFrom<String> for Fullness {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        parse_on_full(&text)
            .map(Self)
            .ok_or("on-full is break, hold or hold:SECONDS, of 1 to 3600 seconds")
    }
}

/// The identity of a disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Identified(pub(super) Identity);

impl TryFrom<String> for Identified {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Identity::from_operator(&text)
            .map(Self)
            .map_err(|why| why.to_string())
    }
}

/// A number of this range.
#[derive(Clone, Copy, Default, Debug, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Within<const LEAST: u64, const MOST: u64>(pub(super) u64);

impl<const LEAST: u64, const MOST: u64> TryFrom<u64> for Within<LEAST, MOST> {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        match (LEAST..=MOST).contains(&number) {
            true => Ok(Self(number)),
            false => Err(format!("a number from {LEAST} to {MOST} is wanted")),
        }
    }
}
