//! What is told of a frozen image to whoever asks what there is.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;
use volmap::frozen::{FrozenError, FrozenImage};
use volmap::range::ByteRange;

use super::registry::Frozen;
use super::report::{FrozenReport, SetReport, State};
use crate::export::{Circumstances, words};

/// All of it but for what has to be asked of the image. It is no part of what keeps the export, so who only asks is no reader.
pub(super) struct Told {
    pub(super) volume: String,
    image: Arc<dyn FrozenImage>,
    circumstances: Circumstances,
    lineage: Vec<Uuid>,
    since: Instant,
}

impl From<&Frozen> for Told {
    fn from(frozen: &Frozen) -> Self {
        Self {
            volume: frozen.volume.clone(),
            image: Arc::clone(&frozen.image),
            circumstances: frozen.export.circumstances().clone(),
            lineage: frozen.export.parents(),
            since: frozen.since,
        }
    }
}

impl Told {
    /// Of the image that is exported under this name. Asks it.
    pub(super) fn report(&self, export: &str, uri: Option<String>) -> FrozenReport {
        let about = self.image.description();
        FrozenReport {
            export: export.to_owned(),
            uri,
            uuid: about.uuid,
            method: about.method.to_owned(),
            strength: words::strength(self.circumstances.strength(about)).to_owned(),
            set: self.circumstances.set.as_ref().map(SetReport::from),
            size: self.image.size(),
            age_seconds: self.since.elapsed().as_secs(),
            state: state_of(self.image.as_ref()),
            lineage: self.lineage.clone(),
        }
    }
}

/// Whether its content is still there. Asks it.
pub(super) fn state_of(image: &dyn FrozenImage) -> State {
    // One extent is the cheapest question that samples the witnesses.
    match ByteRange::new(0, image.size()).map(|all| image.status(all, 1)) {
        Some(Err(FrozenError::Gone(_))) => State::Gone,
        _ => State::Good,
    }
}
