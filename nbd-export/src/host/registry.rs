//! Volumes, tags and frozen images by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use volmap::frozen::{FrozenError, FrozenImage};
use volmap::range::ByteRange;

use super::around::Aftermath;
use super::report::{ExportReport, FrozenReport, Listing, SetReport, State, VolumeReport};
use super::source::Source;
use super::under_way::{UnderWay, Work};
use super::volume_set::VolumeSet;
use crate::config::{Hooks, VolumeName};
use crate::error::{Error, ErrorKind};
use crate::export::{Export, FrozenExport, words};
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
    /// Freezes and thaws.
    under_way: UnderWay,
}

#[derive(Default)]
struct HostState {
    sources: BTreeMap<String, Arc<dyn Source>>,
    /// Those of them that lie on disks which are known to rotate; their frozen images and tags lie beside them.
    rotational: BTreeSet<String>,
    sets: BTreeMap<String, Arc<VolumeSet>>,
    tags: BTreeMap<String, Arc<dyn Export>>,
    frozen: BTreeMap<String, Frozen>,
    /// Export names whose freeze is under way.
    reserved: BTreeSet<String>,
    /// Set at the end: nothing is frozen any more.
    closed: bool,
}

/// A frozen image that is exported.
#[derive(Clone)]
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
        self.hooks = hooks;
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
        let is_of = |export: &str, frozen: &Frozen| match frozen.export.circumstances().set.as_ref() {
            // A set and a volume never have one name.
            Some(set) => export == name || set.name == name,
            None => export == name,
        };
        let exports: Vec<String> = state
            .frozen
            .iter()
            .filter(|(export, frozen)| is_of(export, frozen))
            .map(|(export, _)| export.clone())
            .collect();
        if exports.is_empty() {
            return Err(Error::new(
                ErrorKind::UnknownName,
                format!("there is no frozen image {name}; `nbd-export list` shows those that are"),
            ));
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

    /// Ends all frozen images; none can be made afterwards. Freezes and thaws that are under way are waited for, because what
    /// they leave half done (a clone, an immutable flag on a volume) would outlive the process; not for ever, because a dead disk
    /// must not keep the process.
    pub fn close(&self) {
        self.close_within(CLOSE_PATIENCE);
    }

    pub(super) fn close_within(&self, patience: Duration) {
        let frozen = {
            let mut state = self.write();
            state.closed = true;
            std::mem::take(&mut state.frozen)
        };
        for (export, frozen) in frozen {
            let work = self.under_way.begin();
            // Each on its own: one that hangs must not keep the others frozen.
            let ending = thread::Builder::new().spawn({
                let (export, frozen) = (export.clone(), frozen.clone());
                move || {
                    end(&export, &frozen);
                    drop(work);
                }
            });
            if let Err(error) = ending {
                tracing::debug!(export, %error, "no thread to thaw on");
                end(&export, &frozen);
            }
        }
        if !self.under_way.wait(patience) {
            tracing::error!(
                "a freeze or thaw does not end, and is left behind: look for immutable files (lsattr) and clones"
            );
        }
    }

    /// All that is served.
    pub fn list(&self) -> Listing {
        let (sources, frozen, tags) = {
            let state = self.read();
            (state.sources.clone(), state.frozen.clone(), state.tags.clone())
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

    /// Whether a client gets to know of an export. All that are told of exports are told by this.
    fn is_for(&self, client: &Client, volume: &str, export: &Arc<dyn Export>) -> bool {
        client.audience.may_have(export.info().writable) && self.access.admit(volume, client)
    }

    fn uri(&self, export: &str, writable: bool) -> Option<String> {
        self.addresses.get()?.uri(export, writable)
    }

    pub(super) fn report(&self, export: &str, frozen: &Frozen) -> FrozenReport {
        let about = frozen.image.description();
        let circumstances = frozen.export.circumstances();
        FrozenReport {
            export: export.to_owned(),
            uri: self.uri(export, false),
            uuid: about.uuid,
            method: about.method.to_owned(),
            strength: words::strength(circumstances.strength(about)).to_owned(),
            set: circumstances.set.as_ref().map(SetReport::from),
            size: frozen.image.size(),
            age_seconds: frozen.since.elapsed().as_secs(),
            state: state_of(frozen.image.as_ref()),
        }
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

fn state_of(image: &dyn FrozenImage) -> State {
    // One extent is the cheapest question that samples the witnesses.
    match ByteRange::new(0, image.size()).map(|all| image.status(all, 1)) {
        Some(Err(FrozenError::Gone(_))) => State::Gone,
        _ => State::Good,
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

impl HostState {
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
            export,
        })
    }
}
