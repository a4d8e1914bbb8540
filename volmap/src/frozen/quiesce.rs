//! `quiesce`: the file itself, held free of writers for as long as the frozen image lives.

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;

use super::pinned::PinnedImage;
use super::still_file::{self, Immutability, StillFile};
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
    // The lease first: a file that is being written to is not made immutable under its writer.
    let hold = still_file::hold(file, path, assume_exclusive)?;
    StillFile {
        method: METHOD,
        strength: STRENGTH,
        path,
        hold,
        immutability: Immutability::Set,
        uuid: Uuid::new_v4(),
        frozen_at: SystemTime::now(),
    }
    .freeze(layers, clock)
}
