//! Volumes, tags and frozen images by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use volmap::frozen::FrozenImage;

use super::around::Aftermath;
use super::holds::Holds;
use super::kept::{Kept, KeptImages, PARENTS_MAX};
use super::on_request::Requests;
use super::report::{ExportReport, FrozenReport, Listing, State, VolumeReport};
use super::source::Source;
use super::told::{Told, state_of};
use super::turns::Turns;
use super::under_way::{UnderWay, Work};
use super::volume_set::VolumeSet;
use crate::config::{Hooks, OnRequest, VolumeName};
use crate::error::{Error, ErrorKind};
use crate::export::{Export, FrozenExport};
use crate::proto::handshake::Refusal;
use crate::server::{Addresses, AllowLists, Client, Exports, Found, Offer};

/// What the name of a tag's export ends with.
pub const TAG_SUFFIX: &str = ".tag";

/// Time for freezes and thaws to come to an end at shutdown: most take well below a second, and systemd kills after 90.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// The registry of one agent. Its lock is held for looking things up and never while anything is asked of a volume or a frozen
/// image: a dead disk must not keep others from theirs.
#[derive(Default)]
pub struct Host {
    state: RwLock<HostState>,
    addresses: OnceLock<Addresses>,
    access: AllowLists,
    hooks: Hooks,
    turns: Turns,
    /// Where it is written down which file systems are frozen.
    state_dir: Option<PathBuf>,
    /// How many frozen images of a volume are kept for incrementals; 0: none, and nothing is told of what changed.
    keep: usize,
    /// Freezes and thaws.
    under_way: UnderWay,
    pub(super) holds: Holds,
    pub(super) requests: Requests,
}

#[derive(Default)]
struct HostState {
    sources: BTreeMap<String, Arc<dyn Source>>,
    /// Those of them that lie on disks which are known to rotate; their frozen images and tags lie beside them.
    rotational: BTreeSet<String>,
    sets: BTreeMap<String, Arc<VolumeSet>>,
    tags: BTreeMap<String, Arc<dyn Export>>,
    frozen: BTreeMap<String, Frozen>,
    kept: KeptImages,
    /// Export names whose freeze is under way.
    reserved: BTreeSet<String>,
    /// Set at the end: nothing is frozen any more.
    closed: bool,
}

/// A frozen image that is exported. It is not cloned: who has its export counts as a reader.
pub(super) struct Frozen {
    pub(super) volume: String,
    pub(super) image: Arc<dyn FrozenImage>,
    pub(super) export: Arc<FrozenExport>,
    pub(super) since: Instant,
    /// Of its freeze.
    pub(super) aftermath: Arc<Aftermath>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.read();
        f.debug_struct("Host")
            .field("sources", &state.sources.keys())
            .field("tags", &state.tags.keys())
            .field("frozen", &state.frozen.keys())
            .finish_non_exhaustive()
    }
}

impl Host {
    /// Hides volumes from all that are not on their lists.
    #[must_use]
    pub fn with_access(mut self, access: AllowLists) -> Self {
        self.access = access;
        self
    }

    /// Runs commands around every freeze.
    #[must_use]
    pub fn with_hooks(mut self, hooks: Hooks) -> Self {
        self.turns = Turns::of(&hooks);
        self.hooks = hooks;
        self
    }

    /// Writes down there which file systems are frozen while they are.
    #[must_use]
    pub fn with_state_dir(mut self, state_dir: Option<PathBuf>) -> Self {
        self.state_dir = state_dir;
        self
    }

    /// Keeps so many frozen images of a volume for incrementals.
    #[must_use]
    pub fn keeping(mut self, images: usize) -> Self {
        self.keep = images;
        self
    }

    /// Freezes these volumes for clients that ask for it.
    #[must_use]
    pub fn freezing_on_request(mut self, rules: OnRequest) -> Self {
        self.requests = Requests::under(rules);
        self
    }

    /// A host of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, HostState> {
        self.state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HostState> {
        self.state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Tells how exports are reached, once the listeners are open; the first call counts.
    pub fn publish_at(&self, addresses: Addresses) {
        // Listeners are opened once in the life of a host.
        let _ = self.addresses.set(addresses);
    }

    /// Adds a volume or origin. A live one is exported under its name from now on.
    ///
    /// # Errors
    /// [`ErrorKind::NameTaken`].
    pub fn add(&self, name: &VolumeName, source: Arc<dyn Source>) -> Result<(), Error> {
        let rotates = source.rotates();
        let mut state = self.write();
        if state.sources.contains_key(name.as_str()) || state.is_taken(name.as_str()) {
            return Err(taken(name.as_str()));
        }
        if rotates {
            state.rotational.insert(name.to_string());
        }
        state.sources.insert(name.to_string(), source);
        Ok(())
    }

    /// Adds the tag of a volume, as export `NAME.tag`.
    ///
    /// # Errors
    /// [`ErrorKind::NameTaken`].
    pub fn add_tag(&self, name: &VolumeName, tag: Arc<dyn Export>) -> Result<(), Error> {
        let export = format!("{name}{TAG_SUFFIX}");
        let mut state = self.write();
        if state.is_taken(&export) {
            return Err(taken(&export));
        }
        state.tags.insert(export, tag);
        Ok(())
    }

    /// Adds a set of volumes that are there already.
    ///
    /// # Errors
    /// [`ErrorKind::NameTaken`].
    pub(super) fn add_set(&self, name: &VolumeName, set: VolumeSet) -> Result<(), Error> {
        let mut state = self.write();
        if state.sources.contains_key(name.as_str()) || state.sets.contains_key(name.as_str()) {
            return Err(taken(name.as_str()));
        }
        state.sets.insert(name.to_string(), Arc::new(set));
        Ok(())
    }

    pub(super) fn set(&self, name: &str) -> Option<Arc<VolumeSet>> {
        self.read().sets.get(name).cloned()
    }

    pub(super) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(super) fn state_dir(&self) -> Option<&Path> {
        self.state_dir.as_deref()
    }

    /// Exports frozen images, or gives them back where the host is closed.
    pub(super) fn insert_all(&self, frozen: Vec<(String, Frozen)>) -> Option<Vec<(String, Frozen)>> {
        let mut state = self.write();
        if state.closed {
            return Some(frozen);
        }
        state.frozen.extend(frozen);
        None
    }

    pub(super) fn reserve(
        &self,
        name: &str,
        export: &str,
    ) -> Result<(Arc<dyn Source>, Reservation<'_>), Error> {
        let mut state = self.write();
        if state.closed {
            return Err(closing());
        }
        let source = state.sources.get(name).cloned().ok_or_else(|| {
            let known = state.sources.keys().chain(state.sets.keys());
            let known: Vec<&str> = known.map(String::as_str).collect();
            Error::new(
                ErrorKind::UnknownName,
                format!(
                    "no volume, origin or set is called {name}; there are: {}",
                    known.join(", ")
                ),
            )
        })?;
        if state.is_taken(export) {
            return Err(taken(export));
        }
        Ok((source, self.hold_name(&mut state, export)))
    }

    /// Holds the names of several frozen images, or of none.
    pub(super) fn reserve_all(&self, exports: &[String]) -> Result<Vec<Reservation<'_>>, Error> {
        let mut state = self.write();
        if state.closed {
            return Err(closing());
        }
        if let Some(export) = exports.iter().find(|export| state.is_taken(export)) {
            return Err(taken(export));
        }
        Ok(exports
            .iter()
            .map(|export| self.hold_name(&mut state, export))
            .collect())
    }

    /// Keeps the name of a frozen image that is being made or ended from others.
    fn hold_name(&self, state: &mut HostState, export: &str) -> Reservation<'_> {
        state.reserved.insert(export.to_owned());
        Reservation {
            host: self,
            export: export.to_owned(),
            _work: self.under_way.begin(),
        }
    }

    /// Takes the export of that name, or all of a frozen set, out of what is served. The names stay held.
    pub(super) fn take_out(&self, name: &str) -> Result<Vec<(String, Frozen, Reservation<'_>)>, Error> {
        let mut state = self.write();
        let is_it = |frozen: &Frozen| frozen.image.description().uuid.to_string() == name;
        let exports: Vec<String> = state
            .frozen
            .iter()
            .filter(|(export, frozen)| frozen.is_called(export, name) || is_it(frozen))
            .map(|(export, _)| export.clone())
            .collect();
        if exports.is_empty() {
            let kept = state.kept.called(name);
            let why = match kept.is_empty() {
                false => format!(
                    "is thawed already, and kept for incrementals: `nbd-export thaw --drop` ends that by its UUID ({})",
                    kept.join(", ")
                ),
                true => "is not there; `nbd-export list` shows those that are".to_owned(),
            };
            let why = format!("the frozen image {name} {why}");
            return Err(Error::new(ErrorKind::UnknownName, why));
        }
        let mut taken_out = Vec::new();
        for export in exports {
            if let Some(frozen) = state.frozen.remove(&export) {
                let reserved = self.hold_name(&mut state, &export);
                taken_out.push((export, frozen, reserved));
            }
        }
        Ok(taken_out)
    }

    /// Whether frozen images are kept for incrementals.
    pub(super) fn keeps(&self) -> bool {
        self.keep > 0
    }

    /// Keeps a frozen image for incrementals, and gives those that are not kept any more, which the caller has to thaw.
    pub(super) fn keep(&self, export: &str, frozen: &Frozen) -> Vec<Kept> {
        let mut state = self.write();
        let most = if state.closed { 0 } else { self.keep };
        state.kept.add(export, frozen, most)
    }

    /// Takes a kept image out, which the caller has to thaw; the end of the host waits until the work is dropped.
    pub(super) fn take_kept(&self, uuid: &str) -> Option<(Kept, Work)> {
        let mut state = self.write();
        // Under the lock: a host that is closed meanwhile finds either the image or the work.
        Some((state.kept.take(uuid)?, self.under_way.begin()))
    }

    /// The older frozen images that one of this volume, whose freeze begins after this call, is to be compared with, oldest first: those
    /// that are kept, and those that are served.
    pub(super) fn parents_of(&self, volume: &str) -> Vec<Arc<dyn FrozenImage>> {
        if !self.keeps() {
            return Vec::new();
        }
        let state = self.read();
        let served = state.frozen.values().filter(|frozen| frozen.volume == volume);
        let served = served.map(|frozen| (frozen.since, Arc::clone(&frozen.image)));
        let mut parents: Vec<_> = state.kept.of(volume).chain(served).collect();
        parents.sort_by_key(|(since, _)| *since);
        let too_many = parents.len().saturating_sub(PARENTS_MAX);
        parents
            .into_iter()
            .skip(too_many)
            .map(|(_, image)| image)
            .collect()
    }

    /// Ends all frozen images; none can be made afterwards. Freezes and thaws that are under way are waited for, because what
    /// they leave half done (a clone, an immutable flag on a volume) would outlive the process; not for ever, because a dead disk
    /// must not keep the process.
    pub fn close(&self) {
        self.close_within(CLOSE_PATIENCE);
    }

    pub(super) fn close_within(&self, patience: Duration) {
        let (frozen, kept) = {
            let mut state = self.write();
            state.closed = true;
            (std::mem::take(&mut state.frozen), state.kept.take_all())
        };
        for (export, frozen) in frozen {
            let frozen = Arc::new(frozen);
            self.end_aside(move || end(&export, &frozen));
        }
        for kept in kept {
            self.end_aside(move || kept.image.thaw());
        }
        if !self.under_way.wait(patience) {
            tracing::error!(
                "a freeze or thaw does not end, and is left behind: look for clones, immutable files (lsattr) and snapshots, or run \
                 `nbd-export cleanup`"
            );
        }
    }

    /// Ends something on a thread of its own: one that hangs must not keep the others frozen.
    fn end_aside(&self, end: impl Fn() + Clone + Send + 'static) {
        let work = self.under_way.begin();
        let aside = end.clone();
        let ending = thread::Builder::new().spawn(move || {
            aside();
            drop(work);
        });
        if let Err(error) = ending {
            tracing::debug!(%error, "no thread to thaw on");
            end();
        }
    }

    /// All that is served, and what is kept.
    pub fn list(&self) -> Listing {
        let (sources, frozen, kept, tags) = {
            let state = self.read();
            let kept = state.kept.all().clone();
            let frozen: Vec<(String, Told)> = state
                .frozen
                .iter()
                .map(|(export, frozen)| (export.clone(), Told::from(frozen)))
                .collect();
            (state.sources.clone(), frozen, kept, state.tags.clone())
        };
        let volumes = sources.iter().map(|(name, source)| VolumeReport {
            name: name.clone(),
            kind: source.kind(),
            path: source.path(),
            size: source.size().ok(),
            copy_area: source.copy_area(),
            uri: source.live().and_then(|_| self.uri(name, true)),
            frozen: frozen
                .iter()
                .filter(|(_, frozen)| frozen.volume == *name)
                .map(|(export, frozen)| self.report(export, frozen))
                .collect(),
            kept: (kept.get(name).into_iter().flatten()).map(Kept::report).collect(),
        });
        let tags = tags.iter().map(|(export, tag)| ExportReport {
            export: export.clone(),
            uri: self.uri(export, true),
            size: tag.info().size,
        });
        Listing {
            volumes: volumes.collect(),
            tags: tags.collect(),
        }
    }

    /// The NBD URIs of all exports there are, by name.
    pub fn uris(&self) -> Vec<String> {
        let offers = self.all_offers();
        offers
            .iter()
            .filter_map(|offer| self.uri(&offer.name, offer.writable))
            .collect()
    }

    fn all_offers(&self) -> Vec<Offer> {
        let state = self.read();
        state
            .exports()
            .map(|(name, _, export)| offer(name, &export))
            .collect()
    }

    /// Whether there is such a frozen image, or such a frozen set.
    pub(super) fn is_served(&self, name: &str) -> bool {
        self.read().called(name).next().is_some()
    }

    /// Whether there is such a frozen image, and its content is not lost; of a set, that of none. Asks it, so it may take for ever.
    pub(super) fn stands(&self, name: &str) -> bool {
        let images: Vec<_> = (self.read().called(name))
            .map(|frozen| Arc::clone(&frozen.image))
            .collect();
        !images.is_empty() && images.iter().all(|image| state_of(image.as_ref()) == State::Good)
    }

    /// Whether somebody has such a frozen image open, or one of such a set: a connection holds its export for as long as it lives. Who
    /// only looks it up for a moment counts too.
    pub(super) fn is_open(&self, name: &str) -> bool {
        let state = self.read();
        state
            .called(name)
            .any(|frozen| Arc::strong_count(&frozen.export) > 1)
    }

    /// Whether a client may have this volume, or every volume of this set.
    pub(super) fn admits(&self, name: &str, client: &Client) -> bool {
        match self.set(name) {
            Some(set) => (set.names.iter()).all(|volume| self.access.admit(volume, client)),
            None => self.access.admit(name, client),
        }
    }

    /// The exports of what is thawed by this name.
    pub(super) fn exports_of(&self, name: &str) -> Vec<Arc<FrozenExport>> {
        let state = self.read();
        state
            .called(name)
            .map(|frozen| Arc::clone(&frozen.export))
            .collect()
    }

    /// Whether a client gets to know of an export. All that are told of exports are told by this.
    fn is_for(&self, client: &Client, volume: &str, export: &Arc<dyn Export>) -> bool {
        self.access.admit(volume, client) && client.audience.may_have(export.writable())
    }

    fn uri(&self, export: &str, writable: bool) -> Option<String> {
        self.addresses.get()?.uri(export, writable)
    }

    pub(super) fn report(&self, export: &str, told: &Told) -> FrozenReport {
        told.report(export, self.uri(export, false))
    }
}

fn end(export: &str, frozen: &Frozen) {
    if let Err(error) = frozen.end() {
        tracing::error!(export, %error, "thawed");
    }
}

fn offer(name: &str, export: &Arc<dyn Export>) -> Offer {
    let info = export.info();
    Offer {
        name: name.to_owned(),
        description: info.description,
        writable: info.writable,
    }
}

/// The name of a frozen image that is being made or ended; free again when it is dropped.
pub(super) struct Reservation<'a> {
    host: &'a Host,
    export: String,
    /// Dropped last: whoever waited for it finds the name free.
    _work: Work,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.host.write().reserved.remove(&self.export);
    }
}

fn taken(export: &str) -> Error {
    Error::new(
        ErrorKind::NameTaken,
        format!("there already is an export called {export}: choose another name, or thaw that one first"),
    )
}

pub(super) fn closing() -> Error {
    Error::new(ErrorKind::System, "the agent is shutting down")
}

impl Frozen {
    /// Whether it is thawed by this name: that of its export, or that of its set. A set and a volume never have one name.
    fn is_called(&self, export: &str, name: &str) -> bool {
        let set = self.export.circumstances().set.as_ref();
        export == name || set.is_some_and(|set| set.name == name)
    }
}

impl HostState {
    /// What is thawed by this name.
    fn called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Frozen> {
        let called = move |(export, frozen): &(&String, &Frozen)| frozen.is_called(export, name);
        self.frozen.iter().filter(called).map(|(_, frozen)| frozen)
    }

    fn is_taken(&self, export: &str) -> bool {
        let live = self
            .sources
            .get(export)
            .is_some_and(|source| source.live().is_some());
        live || self.tags.contains_key(export)
            || self.frozen.contains_key(export)
            || self.reserved.contains(export)
    }

    /// Every export: its name, the name of its volume, and itself.
    fn exports(&self) -> impl Iterator<Item = (&str, &str, Arc<dyn Export>)> {
        let live = self
            .sources
            .iter()
            .filter_map(|(name, source)| Some((name.as_str(), name.as_str(), source.live()?)));
        let tags = self.tags.iter().map(|(name, tag)| {
            let volume = name.strip_suffix(TAG_SUFFIX).unwrap_or(name);
            (name.as_str(), volume, Arc::clone(tag))
        });
        let frozen = self.frozen.iter().map(|(name, frozen)| {
            let export: Arc<dyn Export> = frozen.export.clone();
            (name.as_str(), frozen.volume.as_str(), export)
        });
        frozen.chain(live).chain(tags)
    }
}

impl Exports for Host {
    fn offers(&self, client: &Client) -> Vec<Offer> {
        let state = self.read();
        let offered = state
            .exports()
            .filter(|(_, volume, export)| self.is_for(client, volume, export));
        offered.map(|(name, _, export)| offer(name, &export)).collect()
    }

    fn open(&self, name: &str, client: &Client) -> Option<Found> {
        let state = self.read();
        let mut offered = state
            .exports()
            .filter(|(_, volume, export)| self.is_for(client, volume, export));
        let (name, volume, export) = if name.is_empty() {
            // The empty name is the sole export, if there is exactly one.
            offered.next().filter(|_| offered.next().is_none())?
        } else {
            offered.find(|(known, ..)| *known == name)?
        };
        Some(Found {
            name: name.to_owned(),
            rotational: state.rotational.contains(volume),
            made: false,
            export,
        })
    }

    fn makes(&self, name: &str, client: &Client) -> bool {
        self.makes_on_request(name, client)
    }

    fn make(&self, name: &str, client: &Client) -> Result<Found, Refusal> {
        self.make_on_request(name, client)
    }

    fn unmake(&self, name: &str) {
        self.unmake_on_request(name);
    }
}
