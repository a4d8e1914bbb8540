//! Freezing volumes and sets, and ending what came of it.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;
use volmap::frozen::FrozenImage;

use super::around::{Aftermath, Around};
use super::registry::{Frozen, Host, closing};
use super::report::FrozenReport;
use crate::config::VolumeName;
use crate::error::{Error, ErrorKind};
use crate::export::{Circumstances, FrozenExport, SetMembership};

/// Characters of a drawn ID: few enough to type, and a clash among a host's frozen images is not to be met.
const DRAWN_ID_LEN: usize = 8;

/// A frozen image that is going to be exported.
struct Made {
    volume: String,
    export: String,
    image: Arc<dyn FrozenImage>,
    set: Option<SetMembership>,
}

impl Host {
    /// Freezes a volume, or a set at one instant, and exports each frozen image under the volume's own name.
    ///
    /// # Errors
    /// As [`Host::freeze`].
    pub fn freeze_at_start(&self, name: &VolumeName) -> Result<Vec<FrozenReport>, Error> {
        self.freeze_as(name.as_str(), "")
    }

    /// Freezes a volume or origin and exports the frozen image as `NAME@ID`, or a set at one instant, each as `NAME@ID`; an ID is drawn
    /// if none is given. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`], [`ErrorKind::NameTaken`], [`ErrorKind::Usage`] for a malformed ID, and what the
    /// freeze and its hooks say.
    pub fn freeze(&self, name: &str, id: Option<&str>) -> Result<Vec<FrozenReport>, Error> {
        let id: VolumeName = match id {
            Some(id) => id.parse(),
            None => Uuid::new_v4().simple().to_string()[..DRAWN_ID_LEN].parse(),
        }
        .map_err(|why| Error::caused(ErrorKind::Usage, "the ID of a frozen image", why))?;
        self.freeze_as(name, &format!("@{id}"))
    }

    fn freeze_as(&self, name: &str, suffix: &str) -> Result<Vec<FrozenReport>, Error> {
        match self.set(name) {
            Some(set) => {
                let exports: Vec<String> = set.names.iter().map(|name| format!("{name}{suffix}")).collect();
                let _reserved = self.reserve_all(&exports)?;
                let mut around = Around::new(self.hooks(), Some(name), set.names.clone());
                let frozen = match set.freeze(&mut around) {
                    Ok(frozen) => frozen,
                    Err(error) => {
                        around.give_up();
                        return Err(error);
                    }
                };
                let (members, window) = (frozen.images.len(), frozen.window);
                let named = set.names.iter().zip(exports).zip(frozen.images);
                let made = named.map(|((volume, export), made)| Made {
                    volume: volume.clone(),
                    export,
                    image: made.image,
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
                let mut around = Around::new(self.hooks(), None, vec![name.to_owned()]);
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
                    set: None,
                };
                self.publish(vec![made], around)
            }
        }
    }

    /// Exports frozen images, all at once, or none where the host is closed.
    fn publish(&self, made: Vec<Made>, around: Around<'_>) -> Result<Vec<FrozenReport>, Error> {
        let aftermath = Arc::new(around.keep(made.len()));
        let frozen: Vec<(String, Frozen)> = made
            .into_iter()
            .map(|made| {
                let circumstances = Circumstances {
                    by_application: aftermath.by_application(),
                    set: made.set,
                };
                let export = FrozenExport::new(Arc::clone(&made.image)).under(circumstances);
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
            .map(|(export, frozen)| self.report(export, frozen))
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

    /// Ends a frozen image, or those of a set, and removes the exports. Connections that have one open get ESHUTDOWN from now on.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`]; [`ErrorKind::Hook`] where all is thawed and the post-thaw hook failed.
    pub fn thaw(&self, name: &str) -> Result<(), Error> {
        let mut first_failure = Ok(());
        for (export, frozen, _reserved) in self.take_out(name)? {
            let ended = frozen.end();
            tracing::info!(export, "thawed");
            if first_failure.is_ok() {
                first_failure = ended;
            }
        }
        first_failure
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
