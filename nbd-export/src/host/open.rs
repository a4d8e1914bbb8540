//! A host from its configuration: everything is opened and checked before anything is served.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use volmap::cow::{CowError, Fullness, OnFull, Origin};
use volmap::freeze::{FreezeOptions, Method};
use volmap::frozen::FrozenImage;
use volmap::generation::GenerationClock;
use volmap::layers::Layers;
use volmap::leftovers::{Finding, Ledger};
use volmap::set::SetOrigin;
use volmap::tag::Tag;

use super::around::Around;
use super::leftovers::{leftovers, some_may_come, thaw_file_systems};
use super::registry::Host;
use super::source::{CopyAreaFill, FillState, OnFullReport, Source, VolumeKind};
use super::volume_set::{Member, VolumeSet};
use super::writable::WritableSource;
use crate::cli::FreezeMethod;
use crate::config::{Freezing, NamedPath, OriginConfig, ServeConfig, SetConfig, VolumeName};
use crate::error::{Error, ErrorKind};
use crate::export::{Export, OriginExport, TagExport};

impl Host {
    /// Opens everything that `config` names. Nothing is frozen yet.
    ///
    /// # Errors
    /// [`ErrorKind::Volume`] with what is wrong with which volume, [`ErrorKind::System`].
    pub fn open(config: &ServeConfig) -> Result<Self, Error> {
        let system = |why| Error::caused(ErrorKind::System, "no random numbers for generations", why);
        let clock = Arc::new(GenerationClock::start().map_err(system)?);
        let declared = |why| Error::caused(ErrorKind::Volume, "--identity", why);
        let layers = Arc::new(Layers::new(config.identities.clone()).map_err(declared)?);
        // First, as the state directory may lie in one of them.
        thaw_what_was_left(&config.state_dir.path);
        warn_of_leftovers(config);
        let ledger = open_ledger(config)?;
        let host = Self::new()
            .with_access(config.access.clone())
            .with_hooks(config.hooks.clone())
            .with_state_dir(ledger.is_some().then(|| config.state_dir.path.clone()))
            .keeping(config.keep_for_incremental)
            .freezing_on_request(config.on_request.clone());
        let options = |freezing: &Freezing| FreezeOptions {
            method: method(freezing.method),
            clone_dir: freezing.clone_dir.clone(),
            snapshot_size: freezing.snapshot_size,
            assume_exclusive: freezing.assume_exclusive,
            ledger: ledger.clone(),
        };
        let add = |name: &VolumeName, path: &Path, is_file_system: bool, freezing: &Freezing| {
            let source = VolumeSource {
                path: path.to_owned(),
                is_file_system,
                options: options(freezing),
                layers: Arc::clone(&layers),
                clock: Arc::clone(&clock),
            };
            source.size()?;
            host.add(name, Arc::new(source))
        };
        for volume in &config.volumes {
            add(&volume.name, &volume.path, false, &volume.freezing)?;
        }
        let mut origins = BTreeMap::new();
        for origin in &config.origins {
            let source = OriginSource::open(origin, &layers, &clock)?;
            origins.insert(&origin.name, source.of_a_set());
            host.add(&origin.name, Arc::new(source))?;
        }
        for SetConfig {
            name,
            members,
            origins: in_set,
            freezing,
        } in &config.sets
        {
            let in_set = in_set.iter();
            let in_set = in_set.filter_map(|name| Some((name.to_string(), origins.get(name)?.clone())));
            for member in members {
                add(&member.name, &member.path, member.is_file_system, freezing)?;
            }
            let members = members.iter().map(|member| Member {
                name: member.name.to_string(),
                path: member.path.clone(),
                is_file_system: member.is_file_system,
            });
            let set = VolumeSet::new(
                members.collect(),
                in_set.collect(),
                options(freezing),
                Arc::clone(&layers),
                Arc::clone(&clock),
            );
            host.add_set(name, set)?;
        }
        for writable in &config.writables {
            let source = WritableSource::open(writable, &layers)?;
            host.add(&writable.name, Arc::new(source))?;
        }
        for NamedPath { name, path } in &config.tags {
            let tag = Tag::open(path, &layers, &clock)
                .map_err(|why| at(ErrorKind::Volume, "tag", name, path, why))?;
            host.add_tag(name, Arc::new(TagExport::new(tag)))?;
        }
        Ok(host)
    }
}

/// Where what a crash would leave behind is written down. Only an operator who asked for it has to have it: an agent that serves origins
/// leaves nothing, and one without root little.
fn open_ledger(config: &ServeConfig) -> Result<Option<Arc<Ledger>>, Error> {
    let state = &config.state_dir;
    match Ledger::open(&state.path) {
        Ok(ledger) => Ok(Some(ledger)),
        Err(error) if !state.given => {
            tracing::warn!(
                %error,
                "{} cannot be used: what a crash leaves behind will not be found by `nbd-export cleanup`; give a --state-dir",
                state.path.display()
            );
            Ok(None)
        }
        Err(error) => {
            let what = format!("--state-dir {}", state.path.display());
            Err(Error::caused(ErrorKind::System, what, error))
        }
    }
}

/// How long a guardian that is not dead yet is waited for: longer than one that lives may keep anything frozen, and a look every so often.
const GUARDIAN_PATIENCE: Duration = Duration::from_secs(12);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Nothing stays frozen longer than it has to: whoever waits for a file system waits for ever. A guardian that was killed while a freeze was
/// under way ends only when that does, and then it is frozen: this goes on looking, on a thread of its own.
fn thaw_what_was_left(state: &Path) {
    thaw_now(state);
    if !some_may_come(state) {
        return;
    }
    let (ended, end) = channel();
    let state = state.to_owned();
    thread::spawn(move || {
        while some_may_come(&state) {
            thread::sleep(LOOK_EVERY);
        }
        thaw_now(&state);
        // The agent may have gone on without.
        let _ = ended.send(());
    });
    // Of another agent that freezes just now, too.
    let _ = end.recv_timeout(GUARDIAN_PATIENCE);
}

fn thaw_now(state: &Path) {
    let thawed = thaw_file_systems(state).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot look for file systems that were left frozen");
        Vec::new()
    });
    for (leftover, outcome) in thawed {
        match outcome {
            Ok(()) => tracing::warn!("{leftover}, left by an agent that was killed, is ended"),
            Err(error) => tracing::error!(
                %error,
                "{leftover}, left by an agent that was killed, cannot be ended: use fsfreeze --unfreeze"
            ),
        }
    }
}

/// What a killed agent left behind is the operator's to remove.
fn warn_of_leftovers(config: &ServeConfig) {
    let beside = |freezing: &Freezing, path: &Path| freezing.clone_dir.clone().or_else(|| parent(path));
    let alone = (config.volumes.iter()).filter_map(|volume| beside(&volume.freezing, &volume.path));
    let in_sets = config.sets.iter().flat_map(|set| {
        let members = set.members.iter();
        members.filter_map(|member| beside(&set.freezing, &member.path))
    });
    let mut dirs: Vec<PathBuf> = alone.chain(in_sets).collect();
    dirs.sort_unstable();
    dirs.dedup();
    match leftovers(&config.state_dir.path, &dirs) {
        Ok(found) => {
            for leftover in found.iter().filter(|found| found.finding == Finding::There) {
                tracing::warn!(
                    "{leftover} was left by an agent that was killed: `nbd-export cleanup` removes it"
                );
            }
        }
        Err(error) => tracing::debug!(%error, "cannot look for what was left behind"),
    }
}

fn parent(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_owned(),
    })
}

pub(super) fn at(
    kind: ErrorKind,
    what: &str,
    name: &VolumeName,
    path: &Path,
    why: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::caused(kind, format!("{what} {name} ({})", path.display()), why)
}

fn method(method: FreezeMethod) -> Method {
    match method {
        FreezeMethod::Auto => Method::Auto,
        FreezeMethod::Reflink => Method::Reflink,
        FreezeMethod::Quiesce => Method::Quiesce,
        FreezeMethod::LvmSnapshot => Method::LvmSnapshot,
        FreezeMethod::LvmThin => Method::LvmThin,
        FreezeMethod::Static => Method::Static,
    }
}

/// Size of a file or block device. A file is not opened for it, so that nobody's lease is broken by a listing.
fn size(path: &Path) -> io::Result<u64> {
    let metadata = path.metadata()?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        File::open(path)?.seek(SeekFrom::End(0))
    }
}

/// A file or block device that is frozen by what its storage offers.
struct VolumeSource {
    path: PathBuf,
    /// Whether what nobody has of the file system on it is left out.
    is_file_system: bool,
    options: FreezeOptions,
    layers: Arc<Layers>,
    clock: Arc<GenerationClock>,
}

impl Source for VolumeSource {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Volume
    }

    fn path(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> Result<u64, Error> {
        size(&self.path).map_err(|why| Error::caused(ErrorKind::Volume, self.path.display().to_string(), why))
    }

    fn rotates(&self) -> bool {
        self.layers.rotates(&self.path)
    }

    /// As a set of one: what a hook stopped waits for the freeze, and not for the map.
    fn freeze(&self, around: &mut Around<'_>) -> Result<Arc<dyn FrozenImage>, Error> {
        let alone = VolumeSet::new(
            vec![Member {
                name: String::new(),
                path: self.path.clone(),
                is_file_system: self.is_file_system,
            }],
            Vec::new(),
            self.options.clone(),
            Arc::clone(&self.layers),
            Arc::clone(&self.clock),
        );
        let mut images = alone.freeze(around)?.images;
        let made = images.pop().map(|made| made.image);
        made.ok_or_else(|| Error::new(ErrorKind::Freeze, "the freeze made nothing"))
    }
}

/// A volume under copy-before-write: served live, and frozen beside.
pub struct OriginSource {
    path: PathBuf,
    origin: Arc<Origin>,
    export: Arc<OriginExport>,
    rotates: bool,
}

impl OriginSource {
    /// Serves `origin`; the path is for people.
    pub fn new(path: PathBuf, origin: Arc<Origin>) -> Self {
        Self {
            path,
            export: Arc::new(OriginExport::new(Arc::clone(&origin))),
            origin,
            rotates: false,
        }
    }

    /// What a set freezes of it.
    fn of_a_set(&self) -> SetOrigin {
        SetOrigin {
            path: self.path.clone(),
            origin: Arc::clone(&self.origin),
        }
    }

    fn open(
        config: &OriginConfig,
        layers: &Arc<Layers>,
        clock: &Arc<GenerationClock>,
    ) -> Result<Self, Error> {
        let origin = Origin::open(
            &config.path,
            &config.copy_area,
            Arc::clone(layers),
            Arc::clone(clock),
        )
        .map_err(|why| at(ErrorKind::Volume, "origin", &config.name, &config.path, why))?;
        Ok(Self {
            rotates: layers.rotates(&config.path),
            ..Self::new(config.path.clone(), origin)
        })
    }
}

impl Source for OriginSource {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Origin
    }

    fn path(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> Result<u64, Error> {
        Ok(self.origin.size())
    }

    fn rotates(&self) -> bool {
        self.rotates
    }

    fn freeze(&self, around: &mut Around<'_>) -> Result<Arc<dyn FrozenImage>, Error> {
        let failed = |why| {
            let kind = match why {
                CowError::Busy | CowError::AnotherFreeze(_) | CowError::NotReady(_) => ErrorKind::Busy,
                _ => ErrorKind::Freeze,
            };
            Error::caused(kind, self.path.display().to_string(), why)
        };
        // Before a hook stops anything, and before other freezes wait for its end: a disk that hangs is found out here.
        self.origin.make_ready().map_err(failed)?;
        around.before()?;
        let image = self.origin.freeze().map_err(failed)?;
        if let Err(error) = around.after(&[image.description().uuid]) {
            image.thaw();
            return Err(error);
        }
        Ok(image)
    }

    fn copy_area(&self) -> Option<CopyAreaFill> {
        let state = self.origin.copy_area_state();
        let (on_full, hold_seconds) = match state.on_full {
            OnFull::Break => (OnFullReport::Break, None),
            OnFull::Hold(limit) => (OnFullReport::Hold, Some(limit.as_secs())),
        };
        Some(CopyAreaFill {
            used: state.fill.used,
            size: state.fill.size,
            state: match state.fullness {
                Fullness::Good => FillState::Good,
                Fullness::Filling => FillState::Filling,
                Fullness::NearlyFull => FillState::NearlyFull,
                Fullness::Full => FillState::Full,
            },
            on_full,
            hold_seconds,
            held_writers: state.held_writers as u64,
        })
    }

    fn live(&self) -> Option<Arc<dyn Export>> {
        Some(self.export.clone())
    }
}
