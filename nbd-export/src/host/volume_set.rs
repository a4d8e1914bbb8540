//! Volumes that are frozen together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use volmap::cow::CowError;
use volmap::freeze::{FreezeError, FreezeOptions};
use volmap::frozen::without_free_space;
use volmap::generation::GenerationClock;
use volmap::layers::Layers;
use volmap::set::{self, SetImage, SetOrigin};

use super::around::Around;
use crate::error::{Error, ErrorKind};

/// A volume of a set.
pub(super) struct Member {
    /// What it is called.
    pub(super) name: String,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Whether what nobody has of the file system on it is left out.
    pub(super) is_file_system: bool,
}

/// Files, devices and origins that are frozen at one instant.
pub(super) struct VolumeSet {
    /// The names of its volumes, in the order of their paths, and behind them those of its origins.
    pub(super) names: Vec<String>,
    paths: Vec<PathBuf>,
    /// Whether each is there for its file system.
    are_file_systems: Vec<bool>,
    origins: Vec<SetOrigin>,
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
        members: Vec<Member>,
        origins: Vec<(String, SetOrigin)>,
        options: FreezeOptions,
        layers: Arc<Layers>,
        clock: Arc<GenerationClock>,
    ) -> Self {
        let are_file_systems = members.iter().map(|member| member.is_file_system).collect();
        let (mut names, paths): (Vec<_>, _) = members
            .into_iter()
            .map(|member| (member.name, member.path))
            .unzip();
        let (names_of_origins, origins): (Vec<_>, _) = origins.into_iter().unzip();
        names.extend(names_of_origins);
        Self {
            names,
            paths,
            are_file_systems,
            origins,
            options,
            layers,
            clock,
        }
    }

    /// Freezes them. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Freeze`], [`ErrorKind::Busy`], [`ErrorKind::Hook`].
    pub(super) fn freeze(&self, around: &mut Around<'_>) -> Result<FrozenSet, Error> {
        let failed = |why: FreezeError| {
            let what = match (&self.paths[..], &self.origins[..]) {
                ([path], []) => format!(
                    "{} cannot be frozen (`nbd-export probe` shows the ways)",
                    path.display()
                ),
                _ => "the set cannot be frozen".to_owned(),
            };
            let kind = match why {
                FreezeError::Origin {
                    source: CowError::Busy | CowError::AnotherFreeze(_) | CowError::NotReady(_),
                    ..
                } => ErrorKind::Busy,
                _ => ErrorKind::Freeze,
            };
            Error::caused(kind, what, why)
        };
        let prepared = set::prepare(
            &self.paths,
            &self.origins,
            &self.options,
            &self.layers,
            &self.clock,
        )
        .map_err(failed)?;
        around.before()?;
        let hook_holds = around.hook_holds();
        let held = prepared.freeze(hook_holds, around).map_err(failed)?;
        // Maps take their time, and nobody has to wait for them.
        around.after(&held.uuids())?;
        let window = held.window();
        let mut images = held.finish().map_err(failed)?;
        // Behind the volumes are the origins.
        let volumes = self.paths.iter().zip(&self.are_file_systems);
        for (made, (path, is_file_system)) in images.iter_mut().zip(volumes) {
            if *is_file_system {
                self.leave_out_free_space(path, made);
            }
        }
        Ok(FrozenSet { images, window })
    }

    /// Of a file system only what somebody has. Where that is not known for the frozen instant, all of it counts.
    fn leave_out_free_space(&self, path: &Path, made: &mut SetImage) {
        let volume = path.display();
        match without_free_space(&made.image, &self.clock) {
            Ok(without) => {
                let bytes = without.left_out();
                tracing::info!(%volume, bytes, "free space is left out");
                made.image = without;
            }
            Err(why) => tracing::warn!(%volume, %why, "free space is not left out"),
        }
    }
}
