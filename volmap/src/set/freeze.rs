//! The order of things: hold all, take all, look whether all were held, let go, and only then map.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::member::{Held, Means, Opened, one_each};
use super::origins::{SetOrigin, TakenOrigins};
use super::{FileSystems, HeldBy};
use crate::freeze::{FreezeError, FreezeOptions};
use crate::frozen::FrozenImage;
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::{SET_PATCH_MAX, SET_ROUNDS};

/// The first kernel that counts who froze a file system.
const NESTING_SINCE: (u32, u32) = (6, 8);

/// The volumes of a set, opened. Nobody is held up yet.
pub struct PreparedSet<'a> {
    volumes: Vec<Opened<'a>>,
    origins: &'a [SetOrigin],
    means: Means<'a>,
}

/// A set that was frozen: writers go on, and nothing is mapped yet.
pub struct HeldSet<'a> {
    members: Vec<(Held<'a>, HeldBy)>,
    /// Those of origins need no more.
    origins: Vec<SetImage>,
    means: Means<'a>,
    frozen_at: SystemTime,
    window: Duration,
}

/// What was taken while all stood still.
struct Standstill {
    at: SystemTime,
    begun: Instant,
    origins: Vec<Arc<dyn FrozenImage>>,
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
/// [`FreezeError::Open`], [`FreezeError::HeldForWriting`], [`FreezeError::Map`], [`FreezeError::Origin`].
pub fn prepare<'a>(
    paths: &'a [PathBuf],
    origins: &'a [SetOrigin],
    options: &'a FreezeOptions,
    layers: &'a Arc<Layers>,
    clock: &'a Arc<GenerationClock>,
) -> Result<PreparedSet<'a>, FreezeError> {
    let volumes = paths
        .iter()
        .map(|path| Opened::new(path, options, layers))
        .collect::<Result<_, _>>()?;
    origins.iter().try_for_each(SetOrigin::make_ready)?;
    let means = Means {
        options,
        layers,
        clock,
    };
    Ok(PreparedSet {
        volumes,
        origins,
        means,
    })
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
        let several = self.volumes.len() + self.origins.len() > 1;
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
            under_frozen_file_systems(&mut held, &held_by, self.origins, means, file_systems, hook_holds)?
        } else {
            None
        };
        let standstill = match standstill {
            Some(standstill) => standstill,
            None => {
                for by in held_by.iter_mut().filter(|by| **by == HeldBy::FileSystem) {
                    *by = HeldBy::Hook;
                }
                // All else is held by itself, or by the hook, from before this to the last that is taken.
                let origins = TakenOrigins::take(self.origins)?;
                let (at, begun) = (SystemTime::now(), origins.held.since());
                let origins = origins.release(at)?;
                held.iter_mut().try_for_each(Held::take)?;
                Standstill {
                    at: if origins.is_empty() { SystemTime::now() } else { at },
                    begun,
                    origins,
                }
            }
        };
        // Whoever came in between is seen now, after the last volume was taken.
        held.iter().try_for_each(Held::check)?;
        held.iter_mut().for_each(Held::release);
        let begun = if some_held { first_held } else { standstill.begun };
        let by_agent = |image| SetImage {
            image,
            held_by: if several { HeldBy::Agent } else { HeldBy::Alone },
        };
        Ok(HeldSet {
            members: held.into_iter().zip(held_by).collect(),
            origins: standstill.origins.into_iter().map(by_agent).collect(),
            means,
            frozen_at: standstill.at,
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
            Ok(_) if hook_holds && member.is_snapshot() => Ok(HeldBy::Hook),
            Ok(_) if member.is_snapshot() && !freezes_nest() => Err(FreezeError::Apart {
                path: member.path().map(ToOwned::to_owned).unwrap_or_default(),
                why: "a kernel before 6.8 does not let LVM suspend a volume whose file system is frozen already: stop the writers in a \
                      --pre-freeze command"
                    .to_owned(),
            }),
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

/// Whether a file system that is frozen can be frozen once more by the device-mapper. Where it cannot, LVM fails half-way through, and
/// leaves a device behind; so it is not even tried.
fn freezes_nest() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    is_of_or_behind(&release, NESTING_SINCE)
}

/// Whether a kernel's release (`6.1.0-9-amd64`) is that version or a later one; what cannot be read is not.
fn is_of_or_behind(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= version,
        _ => false,
    }
}

/// File systems cannot be frozen, and somebody else holds the set, or nobody does.
fn not_frozen(why: String, hook_holds: bool) -> Result<Option<Standstill>, FreezeError> {
    if hook_holds {
        tracing::info!(why, "file systems are not frozen: the hook holds the set");
        Ok(None)
    } else {
        Err(FreezeError::NotStill(why))
    }
}

/// Takes the members while file systems are frozen. `None`: they cannot be frozen, and the hook has to hold.
fn under_frozen_file_systems(
    held: &mut [Held<'_>],
    held_by: &[HeldBy],
    origins: &[SetOrigin],
    means: Means<'_>,
    file_systems: &mut dyn FileSystems,
    hook_holds: bool,
) -> Result<Option<Standstill>, FreezeError> {
    // Before anything waits.
    if let Err(why) = file_systems.get_ready() {
        return not_frozen(why, hook_holds);
    }
    for round in 1..=SET_ROUNDS {
        for member in held.iter_mut() {
            member.map_clone()?;
        }
        // Before any file system is frozen: an origin or its copy area may lie in one.
        let taken_origins = TakenOrigins::take(origins)?;
        let begun = taken_origins.held.since();
        if let Err(why) = file_systems.freeze(&to_freeze(held, held_by)?) {
            return not_frozen(why, hook_holds);
        }
        let at = SystemTime::now();
        let take = || take_all(held);
        let (origins, fits) = take_and_thaw(taken_origins, at, take, file_systems)?;
        if fits {
            return Ok(Some(Standstill { at, begun, origins }));
        }
        // No old data is kept for them while all is cloned again.
        drop(origins);
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

/// Lets writers of origins go on, takes all else while file systems are frozen, and has these thawed whatever came of it; tells what `take` told.
fn take_and_thaw(
    origins: TakenOrigins<'_>,
    at: SystemTime,
    take: impl FnOnce() -> Result<bool, FreezeError>,
    file_systems: &mut dyn FileSystems,
) -> Result<(Vec<Arc<dyn FrozenImage>>, bool), FreezeError> {
    let images = origins.release(at);
    let taken = match &images {
        Ok(_) => take(),
        Err(_) => Ok(false),
    };
    let thawed = file_systems.thaw().map_err(FreezeError::NotStill);
    // No image ends before this: the end of one waits for writers in flight, and these for the file system that the origin lies in.
    let images = images?;
    let fits = taken?;
    thawed?;
    Ok((images, fits))
}

/// Takes the members; `false`: too much was written to them since they were cloned.
fn take_all(held: &mut [Held<'_>]) -> Result<bool, FreezeError> {
    let mut budget = SET_PATCH_MAX;
    for member in held.iter_mut() {
        if !member.compare(&mut budget)? {
            return Ok(false);
        }
    }
    held.iter_mut().try_for_each(Held::take)?;
    Ok(true)
}

impl HeldSet<'_> {
    /// For how long writers were held up at most.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The frozen images to be, in the order in which the volumes were given, and behind them those of the origins.
    pub fn uuids(&self) -> Vec<Uuid> {
        let members = self.members.iter().filter_map(|(member, _)| member.uuid());
        let origins = self.origins.iter().map(|made| made.image.description().uuid);
        members.chain(origins).collect()
    }

    /// Maps the volumes, and makes their frozen images, in the order in which they were given, and behind them those of the origins.
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
        let members = self.members.into_iter().map(finish);
        members.chain(self.origins.into_iter().map(Ok)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::thread;

    use super::*;
    use crate::cow::tests::bench::{Bench, Hold};
    use crate::cow::tests::races::after_the_write;
    use crate::limits::COPY_UNIT;

    /// A file system in which a writer waits until it is thawed.
    struct WithWriter<'h>(&'h RefCell<Option<Hold>>);

    impl FileSystems for WithWriter<'_> {
        fn freeze(&mut self, _on: &[&File]) -> Result<(), String> {
            Ok(())
        }

        fn thaw(&mut self) -> Result<(), String> {
            self.0.take().expect("it is thawed once").release();
            Ok(())
        }
    }

    #[test]
    fn a_set_that_fails_thaws_its_file_systems_before_it_waits_for_a_writer() {
        let bench = Bench::full(2 * COPY_UNIT, 8);
        let origins = [SetOrigin {
            path: PathBuf::from("origin"),
            origin: Arc::clone(&bench.live),
        }];
        let taken = TakenOrigins::take_within(&origins, Duration::from_secs(60)).unwrap();
        let writer = RefCell::new(Some(Hold::at(&bench.hooks, after_the_write)));
        thread::scope(|scope| {
            let live = &bench.live;
            scope.spawn(move || live.write_at(0, &[1; 512], false).unwrap());
            let fails = || {
                writer.borrow().as_ref().unwrap().wait();
                Err(FreezeError::NotStill("a test".to_owned()))
            };
            let file_systems = &mut WithWriter(&writer);
            let failed = take_and_thaw(taken, SystemTime::now(), fails, file_systems).map(drop);
            assert!(matches!(failed, Err(FreezeError::NotStill(_))));
        });
        assert!(writer.borrow().is_none());
        assert_eq!(bench.live.copy_area_use().used, 0);
    }

    #[test]
    fn releases_are_read() {
        for (release, nests) in [
            ("6.8.0\n", true),
            ("6.12.57+deb13-amd64", true),
            ("7.0-rc1", true),
            ("6.7.12", false),
            ("5.19.0", false),
            ("6.1.176", false),
            ("", false),
            ("six", false),
        ] {
            assert_eq!(is_of_or_behind(release, NESTING_SINCE), nests, "{release}");
        }
    }
}
