//! Freezing volumes and sets, and ending what came of it.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uuid::Uuid;
use volmap::frozen::{FrozenImage, NoLineage};

use super::around::{Aftermath, Around, WhileAnother};
use super::on_request::NEW;
use super::registry::{Frozen, Host, closing};
use super::report::FrozenReport;
use super::told::Told;
use crate::config::VolumeName;
use crate::error::{Error, ErrorKind};
use crate::export::{Circumstances, FrozenExport, Parent, SetMembership};

/// Characters of a drawn ID: few enough to type, and a clash among a host's frozen images is not to be met.
const DRAWN_ID_LEN: usize = 8;

/// For how long a freeze goes on comparing what it made with older frozen images. What is cut off costs a full backup, a freeze that
/// answers too late costs the client's patience.
const COMPARING_PATIENCE: Duration = Duration::from_secs(20);

/// A frozen image that is going to be exported.
struct Made {
    volume: String,
    export: String,
    image: Arc<dyn FrozenImage>,
    /// The frozen images that it is compared with.
    parents: Vec<Arc<dyn FrozenImage>>,
    set: Option<SetMembership>,
}

/// What becomes of a frozen image that nobody reads any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Afterwards {
    /// It is kept for incrementals, where the agent was told to keep any.
    Kept,
    /// It ends.
    Dropped,
}

impl Host {
    /// Freezes a volume, or a set at one instant, and exports each frozen image under the volume's own name.
    ///
    /// # Errors
    /// As [`Host::freeze`].
    pub fn freeze_at_start(&self, name: &VolumeName) -> Result<Vec<FrozenReport>, Error> {
        self.freeze_as(name.as_str(), "", WhileAnother::Waits)
    }

    /// Freezes a volume or origin and exports the frozen image as `NAME@ID`, or a set at one instant, each as `NAME@ID`; an ID is drawn
    /// if none is given. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`], [`ErrorKind::NameTaken`], [`ErrorKind::Usage`] for a malformed ID, and what the
    /// freeze and its hooks say.
    pub fn freeze(&self, name: &str, id: Option<&str>) -> Result<Vec<FrozenReport>, Error> {
        self.freeze_called(name, id, WhileAnother::Waits)
    }

    fn freeze_called(
        &self,
        name: &str,
        id: Option<&str>,
        while_another: WhileAnother,
    ) -> Result<Vec<FrozenReport>, Error> {
        let id: VolumeName = match id {
            Some(NEW) => {
                let message = format!("no frozen image is called @{NEW}: that stands for one that is made when a client enters it");
                return Err(Error::new(ErrorKind::Usage, message));
            }
            Some(id) => id.parse(),
            None => Uuid::new_v4().simple().to_string()[..DRAWN_ID_LEN].parse(),
        }
        .map_err(|why| Error::caused(ErrorKind::Usage, "the ID of a frozen image", why))?;
        self.freeze_as(name, &format!("@{id}"), while_another)
    }

    /// The same, and it ends by itself after a time unless that is renewed.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn freeze_for(
        &self,
        name: &str,
        id: Option<&str>,
        hold: Option<Duration>,
    ) -> Result<Vec<FrozenReport>, Error> {
        self.freeze_held(name, id, hold, WhileAnother::Waits)
    }

    /// The same, with what it does while another freeze has its hooks running.
    pub(super) fn freeze_held(
        &self,
        name: &str,
        id: Option<&str>,
        hold: Option<Duration>,
        while_another: WhileAnother,
    ) -> Result<Vec<FrozenReport>, Error> {
        let made = self.freeze_called(name, id, while_another)?;
        if let Some(first) = made.first() {
            let name = first.thawed_by();
            match hold {
                Some(hold) => self.holds.set(name, hold),
                // That of an earlier one of this name, which was thawed by its UUID, is no business of this one.
                None => self.holds.forget(name),
            }
        }
        Ok(made)
    }

    /// Keeps a frozen image, or those of a frozen set, so long from now on.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`]: it is not there, or ends only by a thaw.
    pub fn hold(&self, name: &str, time: Duration) -> Result<(), Error> {
        if self.holds.rest(name).is_none() {
            let message =
                format!("there is no frozen image {name} under a hold: it has run out, or there was none");
            return Err(Error::new(ErrorKind::UnknownName, message));
        }
        self.holds.set(name, time);
        Ok(())
    }

    /// Thaws what nobody wants any more, each on a thread of its own. It is no parent of anything: nobody has said that its backup has committed.
    pub fn thaw_what_is_held_no_longer(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let mut thaws = Vec::new();
        for name in self.holds.take_expired() {
            tracing::warn!(export = name, "its hold has run out, and nobody renewed it");
            match self.thaw_aside(name.clone()) {
                Some(thaw) => thaws.push(thaw),
                // The next look takes it out again.
                None => self.holds.set(&name, Duration::ZERO),
            }
        }
        thaws
    }

    fn freeze_as(
        &self,
        name: &str,
        suffix: &str,
        while_another: WhileAnother,
    ) -> Result<Vec<FrozenReport>, Error> {
        match self.set(name) {
            Some(set) => {
                let exports: Vec<String> = set.names.iter().map(|name| format!("{name}{suffix}")).collect();
                let _reserved = self.reserve_all(&exports)?;
                let parents: Vec<_> = set.names.iter().map(|name| self.parents_of(name)).collect();
                let mut around = self.around(while_another, Some(name), set.names.clone());
                let frozen = match set.freeze(&mut around) {
                    Ok(frozen) => frozen,
                    Err(error) => {
                        around.give_up();
                        return Err(error);
                    }
                };
                let (members, window) = (frozen.images.len(), frozen.window);
                let named = set.names.iter().zip(exports).zip(parents).zip(frozen.images);
                let made = named.map(|(((volume, export), parents), made)| Made {
                    volume: volume.clone(),
                    export,
                    image: made.image,
                    parents,
                    set: Some(SetMembership {
                        name: format!("{name}{suffix}"),
                        members,
                        window,
                        held_by: made.held_by,
                    }),
                });
                let reports = self.publish(made.collect(), around)?;
                tracing::info!(
                    set = format!("{name}{suffix}"),
                    members,
                    ?window,
                    "frozen at one instant"
                );
                Ok(reports)
            }
            None => {
                let export = format!("{name}{suffix}");
                let (source, _reserved) = self.reserve(name, &export)?;
                let parents = self.parents_of(name);
                let mut around = self.around(while_another, None, vec![name.to_owned()]);
                // The freeze may take long, and others are served meanwhile: only the name is held.
                let image = match source.freeze(&mut around) {
                    Ok(image) => image,
                    Err(error) => {
                        around.give_up();
                        return Err(error);
                    }
                };
                let made = Made {
                    volume: name.to_owned(),
                    export,
                    image,
                    parents,
                    set: None,
                };
                self.publish(vec![made], around)
            }
        }
    }

    fn around(&self, while_another: WhileAnother, set: Option<&str>, volumes: Vec<String>) -> Around<'_> {
        Around::new(
            self.hooks(),
            self.turns(),
            self.state_dir(),
            while_another,
            set,
            volumes,
        )
    }

    /// Exports frozen images, all at once, or none where the host is closed.
    fn publish(&self, made: Vec<Made>, around: Around<'_>) -> Result<Vec<FrozenReport>, Error> {
        let aftermath = Arc::new(around.keep(made.len()));
        let deadline = Instant::now() + COMPARING_PATIENCE;
        let frozen: Vec<(String, Frozen)> = made
            .into_iter()
            .map(|made| {
                let lineage = made.lineage(deadline);
                let circumstances = Circumstances {
                    by_application: aftermath.by_application(),
                    set: made.set,
                };
                let export = FrozenExport::new(Arc::clone(&made.image))
                    .under(circumstances)
                    .since(lineage);
                let frozen = Frozen {
                    volume: made.volume,
                    image: made.image,
                    export: Arc::new(export),
                    since: Instant::now(),
                    aftermath: Arc::clone(&aftermath),
                };
                (made.export, frozen)
            })
            .collect();
        let reports: Vec<FrozenReport> = frozen
            .iter()
            .map(|(export, frozen)| self.report(export, &Told::from(frozen)))
            .collect();
        if let Some(late) = self.insert_all(frozen) {
            for (export, frozen) in late {
                if let Err(error) = frozen.end() {
                    tracing::error!(export, %error, "after a freeze that came too late");
                }
            }
            return Err(closing());
        }
        for report in &reports {
            let FrozenReport {
                export, uuid, method, ..
            } = report;
            tracing::info!(export, %uuid, method, "frozen");
        }
        Ok(reports)
    }

    /// Ends a frozen image, or those of a set, and removes the exports: by their name, the set's, or a UUID. Connections that have one open
    /// get ESHUTDOWN from now on, also where the image is kept for incrementals.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`]; [`ErrorKind::Hook`] where all is thawed and the post-thaw hook failed.
    pub fn thaw(&self, name: &str) -> Result<(), Error> {
        self.thaw_then(name, Afterwards::Kept)
    }

    /// The same, and none of them is kept for incrementals; one that is kept already, and has this UUID, is not any more.
    ///
    /// # Errors
    /// As [`thaw`](Self::thaw).
    pub fn thaw_for_good(&self, name: &str) -> Result<(), Error> {
        self.thaw_then(name, Afterwards::Dropped)
    }

    /// Thaws for good on a thread of its own: for a disk, or for hooks, it may wait long, and whoever looks after several must not.
    pub(super) fn thaw_aside(self: &Arc<Self>, name: String) -> Option<JoinHandle<()>> {
        let host = Arc::clone(self);
        let thaw = move || match host.thaw_for_good(&name) {
            // Thawed by somebody else meanwhile.
            Err(error) if error.kind() == ErrorKind::UnknownName => {}
            Err(error) => tracing::error!(export = name, %error, "after a thaw that nobody waited for"),
            Ok(()) => {}
        };
        let thread = thread::Builder::new().spawn(thaw);
        thread
            .inspect_err(|error| tracing::error!(%error, "no thread to thaw on"))
            .ok()
    }

    fn thaw_then(&self, name: &str, afterwards: Afterwards) -> Result<(), Error> {
        let _ending = self.requests.ending(name);
        self.holds.forget(name);
        let taken_out = match self.take_out(name) {
            Ok(taken_out) => taken_out,
            Err(unknown) => return self.drop_kept(name, afterwards).ok_or(unknown),
        };
        let mut first_failure = Ok(());
        for (export, frozen, _reserved) in taken_out {
            let ended = match afterwards {
                Afterwards::Kept if self.keeps() => self.retire(&export, &frozen),
                _ => frozen.end(),
            };
            tracing::info!(export, "thawed");
            if first_failure.is_ok() {
                first_failure = ended;
            }
        }
        first_failure
    }

    /// Ends a kept image; `None` where there is none, or it is to stay.
    fn drop_kept(&self, uuid: &str, afterwards: Afterwards) -> Option<()> {
        if afterwards == Afterwards::Kept {
            return None;
        }
        let (kept, _work) = self.take_kept(uuid)?;
        kept.image.thaw();
        tracing::info!(uuid, export = kept.export, "not kept any more");
        Some(())
    }

    /// Ends the export of a frozen image that is kept for incrementals, if it can be.
    fn retire(&self, export: &str, frozen: &Frozen) -> Result<(), Error> {
        let about = frozen.image.description();
        frozen.export.end();
        if !frozen.image.keep_as_parent() {
            tracing::warn!(export, uuid = %about.uuid, method = about.method,
                "not kept for incrementals: it could not tell what changed since");
            return frozen.end();
        }
        tracing::info!(export, uuid = %about.uuid, "kept for incrementals");
        for too_many in self.keep(export, frozen) {
            let uuid = too_many.image.description().uuid;
            tracing::warn!(%uuid, export = too_many.export,
                "newer ones take its place: it is not kept any more, and incrementals against it are not possible");
            too_many.image.thaw();
        }
        frozen.aftermath.one_ended()
    }
}

impl Made {
    /// What changed since its parents, oldest first. The newest is compared first, because most often it is the one that is asked for; no
    /// comparison begins after the deadline, or after one that has waited for nothing: the next would wait for the same.
    fn lineage(&self, deadline: Instant) -> Vec<Parent> {
        let mut known = Vec::new();
        let mut parents = self.parents.iter().rev();
        for parent in parents.by_ref() {
            if Instant::now() >= deadline {
                self.not_compared(parent, "comparing took too long");
                break;
            }
            let since = parent.description().uuid;
            match self.image.changed_since(&**parent) {
                Ok(changed) => {
                    tracing::info!(export = self.export, %since, bytes = changed.changed_bytes(), "changed");
                    known.push(Parent { uuid: since, changed });
                }
                Err(why) => {
                    self.not_compared(parent, &why.to_string());
                    if matches!(why, NoLineage::NotNow(_)) {
                        break;
                    }
                }
            }
        }
        for parent in parents {
            self.not_compared(parent, "no time was left for it");
        }
        known.reverse();
        known
    }

    fn not_compared(&self, parent: &Arc<dyn FrozenImage>, why: &str) {
        let since = parent.description().uuid;
        tracing::warn!(export = self.export, %since, why, "what changed is not known: a backup against it is a full one");
    }
}

impl Frozen {
    /// Ends it, and with the last of its freeze what was left to do.
    pub(super) fn end(&self) -> Result<(), Error> {
        self.image.thaw();
        let aftermath: &Aftermath = &self.aftermath;
        aftermath.one_ended()
    }
}

#[cfg(test)]
mod tests {
    use volmap::frozen::ChangedMap;

    use super::*;
    use crate::export::scripted::{MIB, Scripted};

    #[test]
    fn what_comes_after_the_deadline_is_not_compared() {
        let image = || Scripted::drawn().telling(ChangedMap::all_but(4 * MIB, []));
        let (older, newer) = ([image(), image()], image());
        let made = Made {
            volume: "vm".to_owned(),
            export: "vm@a".to_owned(),
            image: newer,
            parents: older.iter().map(|image| Arc::clone(image) as _).collect(),
            set: None,
        };
        assert!(made.lineage(Instant::now()).is_empty());
        let known = made.lineage(Instant::now() + COMPARING_PATIENCE);
        let known: Vec<Uuid> = known.iter().map(|parent| parent.uuid).collect();
        assert_eq!(known, older.map(|image| image.description().uuid), "oldest first");
    }
}
