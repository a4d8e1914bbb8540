//! `quiesce`: the file itself, held free of writers for as long as the frozen image lives.

use std::fs::File;
use std::path::Path;

use super::pinned::PinnedImage;
use super::still_file::{Immutability, StillFile};
use super::{FreezeError, Strength};
use crate::generation::GenerationClock;
use crate::layers::Layers;

/// Name of the provider.
pub(crate) const METHOD: &str = "quiesce";

/// What it is good for: no writer was there.
pub(crate) const STRENGTH: Strength = Strength::Quiesced;

/// Freezes the file at `path`, open read-only.
///
/// # Errors
/// [`FreezeError::WriterPresent`], [`FreezeError::LeaseNotAllowed`], [`FreezeError::NotWitnessed`], or those of mapping.
pub(crate) fn freeze(
    path: &Path,
    file: File,
    assume_exclusive: bool,
    layers: &Layers,
    clock: &GenerationClock,
) -> Result<PinnedImage, FreezeError> {
    StillFile::held(METHOD, STRENGTH, path, file, assume_exclusive, Immutability::Set)?.freeze(layers, clock)
}
