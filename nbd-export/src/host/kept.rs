//! Frozen images that nobody reads any more, and that are kept: what changed since they were frozen is the content of incrementals.
//!
//! They have no name and no export. Each goes when it is dropped by its UUID, when newer ones of its volume take its place, and with the
//! agent. None comes back: what is known of the time since a freeze is in the agent's memory, or in a file or snapshot that it holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use volmap::frozen::FrozenImage;

use super::registry::Frozen;
use super::report::{KeptReport, State};

/// Most older frozen images that a new one is compared with. Each takes as much memory as there are bits for its pieces.
pub(super) const PARENTS_MAX: usize = 8;

/// Most frozen images of a volume that can be kept: all of them are compared with.
pub const KEPT_MAX: usize = PARENTS_MAX;

/// A frozen image that is kept.
#[derive(Clone)]
pub(super) struct Kept {
    /// What its export was called.
    pub(super) export: String,
    /// What it was frozen with, if it was a set.
    set: Option<String>,
    pub(super) image: Arc<dyn FrozenImage>,
    since: Instant,
}

impl Kept {
    fn uuid(&self) -> String {
        self.image.description().uuid.to_string()
    }

    /// Whether somebody who knew its export may mean it.
    fn was_called(&self, name: &str) -> bool {
        self.export == name || self.set.as_deref() == Some(name) || self.uuid() == name
    }

    /// What is told of it. Asks the image, which may take long.
    pub(super) fn report(&self) -> KeptReport {
        let about = self.image.description();
        KeptReport {
            uuid: about.uuid,
            export: self.export.clone(),
            method: about.method.to_owned(),
            size: self.image.size(),
            age_seconds: self.since.elapsed().as_secs(),
            state: match self.image.can_be_parent() {
                true => State::Good,
                false => State::Gone,
            },
        }
    }
}

/// All that are kept, by volume, oldest first.
#[derive(Default)]
pub(super) struct KeptImages(BTreeMap<String, Vec<Kept>>);

impl KeptImages {
    /// Keeps one more, and gives those that there are too many of then.
    pub(super) fn add(&mut self, export: &str, frozen: &Frozen, most: usize) -> Vec<Kept> {
        let set = frozen.export.circumstances().set.as_ref();
        let of_volume = self.0.entry(frozen.volume.clone()).or_default();
        of_volume.push(Kept {
            export: export.to_owned(),
            set: set.map(|set| set.name.clone()),
            image: Arc::clone(&frozen.image),
            since: frozen.since,
        });
        of_volume.sort_by_key(|kept| kept.since);
        let too_many = of_volume.len().saturating_sub(most);
        of_volume.drain(..too_many).collect()
    }

    /// Takes out what has this UUID. Not by the name of its export: that is used again, and whoever sends a request twice means the one
    /// that is gone.
    pub(super) fn take(&mut self, uuid: &str) -> Option<Kept> {
        self.0.values_mut().find_map(|of_volume| {
            let nth = of_volume.iter().position(|kept| kept.uuid() == uuid)?;
            Some(of_volume.remove(nth))
        })
    }

    /// The UUIDs of those that were exported by this name, alone or as a set, or have this UUID.
    pub(super) fn called(&self, name: &str) -> Vec<String> {
        let all = self.0.values().flatten();
        all.filter(|kept| kept.was_called(name)).map(Kept::uuid).collect()
    }

    /// Takes out all.
    pub(super) fn take_all(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.0).into_values().flatten().collect()
    }

    /// Those of a volume, each with the time of its freeze.
    pub(super) fn of(&self, volume: &str) -> impl Iterator<Item = (Instant, Arc<dyn FrozenImage>)> {
        let of_volume = self.0.get(volume).into_iter().flatten();
        of_volume.map(|kept| (kept.since, Arc::clone(&kept.image)))
    }

    /// All that are kept, by volume.
    pub(super) fn all(&self) -> &BTreeMap<String, Vec<Kept>> {
        &self.0
    }
}
