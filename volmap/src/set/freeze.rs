//! The order of things: hold all, take all, look whether all were held, let go, and only then map.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::member::{Held, Means, Opened, one_each};
use super::{FileSystems, HeldBy};
use crate::freeze::{FreezeError, FreezeOptions};
use crate::frozen::FrozenImage;
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::{SET_PATCH_MAX, SET_ROUNDS};

/// The volumes of a set, opened. Nobody is held up yet.
pub struct PreparedSet<'a> {
    volumes: Vec<Opened<'a>>,
    means: Means<'a>,
}

/// A set that was frozen: writers go on, and nothing is mapped yet.
pub struct HeldSet<'a> {
    members: Vec<(Held<'a>, HeldBy)>,
    means: Means<'a>,
    frozen_at: SystemTime,
    window: Duration,
}

/// A frozen image of a volume of a set.
pub struct SetImage {
    /// The frozen image.
    pub image: Arc<dyn FrozenImage>,
    /// What held the volume still for it.
    pub held_by: HeldBy,
}

/// Opens the volumes of a set, and has what is dirty written back.
///
/// # Errors
/// [`FreezeError::Open`], [`FreezeError::HeldForWriting`], [`FreezeError::Map`].
pub fn prepare<'a>(
    paths: &'a [PathBuf],
    options: &'a FreezeOptions,
    layers: &'a Arc<Layers>,
    clock: &'a Arc<GenerationClock>,
) -> Result<PreparedSet<'a>, FreezeError> {
    let volumes = paths
        .iter()
        .map(|path| Opened::new(path, options, layers))
        .collect::<Result<_, _>>()?;
    let means = Means {
        options,
        layers,
        clock,
    };
    Ok(PreparedSet { volumes, means })
}

impl<'a> PreparedSet<'a> {
    /// Freezes all volumes at one instant. `hook_holds`: a hook has stopped whatever writes to them, and they may be taken one after
    /// another where nothing else holds them.
    ///
    /// # Errors
    /// [`FreezeError`]; nothing is held and nothing is left behind then.
    pub fn freeze(
        self,
        hook_holds: bool,
        file_systems: &mut dyn FileSystems,
    ) -> Result<HeldSet<'a>, FreezeError> {
        let means = self.means;
        let several = self.volumes.len() > 1;
        let first_held = Instant::now();
        let mut held = self
            .volumes
            .into_iter()
            .map(|volume| volume.hold(several, means))
            .collect::<Result<Vec<_>, _>>()?;
        // What is not held by itself goes on until its file system is frozen, or its provider takes it.
        let some_held = held.iter().any(|member| member.by_itself().is_some());
        let mut held_by = ways(&held, several, hook_holds)?;
        let standstill = if held_by.contains(&HeldBy::FileSystem) {
            under_frozen_file_systems(&mut held, &held_by, means, file_systems, hook_holds)?
        } else {
            None
        };
        let (frozen_at, taken_since) = match standstill {
            Some(standstill) => standstill,
            None => {
                for by in held_by.iter_mut().filter(|by| **by == HeldBy::FileSystem) {
                    *by = HeldBy::Hook;
                }
                let begun = Instant::now();
                held.iter_mut().try_for_each(|member| member.take(means))?;
                (SystemTime::now(), begun)
            }
        };
        // Whoever came in between is seen now, after the last volume was taken.
        held.iter().try_for_each(Held::check)?;
        held.iter_mut().for_each(Held::release);
        let begun = if some_held { first_held } else { taken_since };
        Ok(HeldSet {
            members: held.into_iter().zip(held_by).collect(),
            means,
            frozen_at,
            window: begun.elapsed(),
        })
    }
}

/// What holds each member still, if anything does.
fn ways(held: &[Held<'_>], several: bool, hook_holds: bool) -> Result<Vec<HeldBy>, FreezeError> {
    let way = |member: &Held<'_>| {
        if !several {
            return Ok(HeldBy::Alone);
        }
        if let Some(by) = member.by_itself() {
            return Ok(by);
        }
        match member.file_systems() {
            // Its provider freezes the file system by itself, and not every kernel lets it be frozen twice.
            Ok(_) if hook_holds && member.is_whole() => Ok(HeldBy::Hook),
            Ok(_) => Ok(HeldBy::FileSystem),
            Err(_) if hook_holds => Ok(HeldBy::Hook),
            Err(why) => Err(FreezeError::Apart {
                path: member.path().map(ToOwned::to_owned).unwrap_or_default(),
                why: format!("{why}: stop the writers in a --pre-freeze command"),
            }),
        }
    };
    held.iter().map(way).collect()
}

/// Takes the members while file systems are frozen: the instant, and since when. `None`: they cannot be frozen, and the hook has to
/// hold.
fn under_frozen_file_systems(
    held: &mut [Held<'_>],
    held_by: &[HeldBy],
    means: Means<'_>,
    file_systems: &mut dyn FileSystems,
    hook_holds: bool,
) -> Result<Option<(SystemTime, Instant)>, FreezeError> {
    for round in 1..=SET_ROUNDS {
        for member in held.iter_mut() {
            member.map_clone()?;
        }
        let begun = Instant::now();
        match file_systems.freeze(&to_freeze(held, held_by)?) {
            Ok(()) => {}
            Err(why) if hook_holds => {
                tracing::info!(why, "file systems are not frozen: the hook holds the set");
                return Ok(None);
            }
            Err(why) => return Err(FreezeError::NotStill(why)),
        }
        let at = SystemTime::now();
        let mut budget = SET_PATCH_MAX;
        let taken = take_all(held, means, &mut budget);
        // Whatever came of it, they are thawed.
        let thawed = file_systems.thaw().map_err(FreezeError::NotStill);
        let fits = taken?;
        thawed?;
        if fits {
            return Ok(Some((at, begun)));
        }
        tracing::info!(round, "too much was written while the set was cloned: once more");
        for member in held.iter_mut() {
            member.clone_again(means)?;
        }
    }
    Err(FreezeError::NotStill(format!(
        "more than {} MiB were written each time between clone and freeze: freeze when less is written",
        SET_PATCH_MAX >> 20
    )))
}

fn to_freeze<'f>(held: &'f [Held<'_>], held_by: &[HeldBy]) -> Result<Vec<&'f File>, FreezeError> {
    let mut files = Vec::new();
    for (member, by) in held.iter().zip(held_by) {
        if *by == HeldBy::FileSystem {
            files.extend(member.file_systems().map_err(FreezeError::NotStill)?);
        }
    }
    one_each(files).map_err(|error| FreezeError::NotStill(error.to_string()))
}

fn take_all(held: &mut [Held<'_>], means: Means<'_>, budget: &mut usize) -> Result<bool, FreezeError> {
    for member in held.iter_mut() {
        if !member.compare(budget)? {
            return Ok(false);
        }
    }
    held.iter_mut().try_for_each(|member| member.take(means))?;
    Ok(true)
}

impl HeldSet<'_> {
    /// For how long writers were held up at most.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The frozen images to be, in the order in which the volumes were given.
    pub fn uuids(&self) -> Vec<Uuid> {
        self.members
            .iter()
            .filter_map(|(member, _)| member.uuid())
            .collect()
    }

    /// Maps the volumes, and makes their frozen images, in the order in which they were given.
    ///
    /// # Errors
    /// [`FreezeError`]; none of them is left then.
    pub fn finish(self) -> Result<Vec<SetImage>, FreezeError> {
        let (means, at) = (self.means, self.frozen_at);
        let finish = |(member, held_by): (Held<'_>, HeldBy)| {
            Ok(SetImage {
                image: member.finish(at, means)?,
                held_by,
            })
        };
        self.members.into_iter().map(finish).collect()
    }
}
