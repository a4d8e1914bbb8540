//! Volumes that are frozen together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use volmap::freeze::{FreezeError, FreezeOptions};
use volmap::generation::GenerationClock;
use volmap::layers::Layers;
use volmap::set::{self, SetImage};

use super::around::Around;
use crate::error::{Error, ErrorKind};

/// Files and devices that are frozen at one instant.
pub(super) struct VolumeSet {
    /// The names of its volumes, in the order of their paths.
    pub(super) names: Vec<String>,
    paths: Vec<PathBuf>,
    options: FreezeOptions,
    layers: Arc<Layers>,
    clock: Arc<GenerationClock>,
}

/// What came of the freeze of a set.
pub(super) struct FrozenSet {
    /// In the order of the volumes.
    pub(super) images: Vec<SetImage>,
    /// For how long writers were held up.
    pub(super) window: Duration,
}

impl VolumeSet {
    pub(super) fn new(
        members: Vec<(String, PathBuf)>,
        options: FreezeOptions,
        layers: Arc<Layers>,
        clock: Arc<GenerationClock>,
    ) -> Self {
        let (names, paths) = members.into_iter().unzip();
        Self {
            names,
            paths,
            options,
            layers,
            clock,
        }
    }

    /// Freezes them. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Freeze`], [`ErrorKind::Hook`].
    pub(super) fn freeze(&self, around: &mut Around<'_>) -> Result<FrozenSet, Error> {
        let failed = |why: FreezeError| {
            let what = match &self.paths[..] {
                [path] => format!(
                    "{} cannot be frozen (`nbd-export probe` shows the ways)",
                    path.display()
                ),
                _ => "the set cannot be frozen".to_owned(),
            };
            Error::caused(ErrorKind::Freeze, what, why)
        };
        let prepared = set::prepare(&self.paths, &self.options, &self.layers, &self.clock).map_err(failed)?;
        around.before()?;
        let hook_holds = around.hook_holds();
        let held = prepared.freeze(hook_holds, around).map_err(failed)?;
        // Maps take their time, and nobody has to wait for them.
        around.after(&held.uuids())?;
        let window = held.window();
        Ok(FrozenSet {
            images: held.finish().map_err(failed)?,
            window,
        })
    }
}
