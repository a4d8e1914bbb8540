//! `quiesce`: the file itself, held free of writers for as long as the frozen image lives.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::still_file::{Immutability, StillFile};
use super::{FreezeError, Strength};
use crate::leftovers::Ledger;

/// Name of the provider.
pub(crate) const METHOD: &str = "quiesce";

/// What it is good for: no writer was there.
pub(crate) const STRENGTH: Strength = Strength::Quiesced;

/// Holds the file at `path`, open read-only, free of writers from now on.
///
/// # Errors
/// [`FreezeError::WriterPresent`], [`FreezeError::LeaseNotAllowed`], [`FreezeError::NotWitnessed`].
pub(crate) fn hold<'a>(
    path: &'a Path,
    file: File,
    assume_exclusive: bool,
    ledger: Option<&Arc<Ledger>>,
) -> Result<StillFile<'a>, FreezeError> {
    let held = StillFile::held(METHOD, STRENGTH, path, file, assume_exclusive, Immutability::Set)?;
    Ok(held.with_ledger(ledger))
}
