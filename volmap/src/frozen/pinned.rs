//! The frozen image of a file or device whose bytes lie still: what `reflink`, `quiesce` and `static` have in common.
//!
//! Its own extents stay where they are for as long as the hold stands. What lies below may be moved (pvmove, a balance): then there
//! is another map, under another generation (laws H2 and H3), as soon as one can be made that nothing has happened to since it was
//! begun. Until then nothing has a location, and all is read over NBD.

mod drop_behind;
mod lineage;
mod placement;
mod survey;
mod tries;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use super::hold::Hold;
use super::loss::Loss;
use super::{ChangedMap, Description, FrozenError, FrozenImage, NoLineage, Stability, Status};
use crate::generation::{Generation, GenerationClock};
use crate::layers::VolumeKind;
use crate::map::Extent;
use crate::range::ByteRange;
use crate::storage::read_direct;
use crate::store::StoreGraph;
use crate::sys::page_cache;
use drop_behind::DropBehind;
use placement::{Placement, Standing};
use tries::{Outcome, Tries};

pub(super) use survey::{Survey, SurveyAgain};

/// What a provider made, before it becomes a frozen image. Its hold ends with the image.
pub(super) struct Frozen {
    pub(super) description: Description,
    pub(super) hold: Box<dyn Hold>,
    pub(super) survey: Survey,
    pub(super) survey_again: SurveyAgain,
}

/// A frozen image whose bytes lie still. Dropped, it is thawed.
pub(crate) struct PinnedImage(Arc<Inner>);

/// What a thread that maps anew has to do with, too.
struct Inner {
    description: Description,
    hold: Box<dyn Hold>,
    size: u64,
    kind: VolumeKind,
    placement: RwLock<Arc<Placement>>,
    tries: Tries,
    survey_again: SurveyAgain,
    clock: Arc<GenerationClock>,
    loss: Loss,
    behind: DropBehind,
}

impl PinnedImage {
    /// A frozen image of what a provider made.
    ///
    /// # Errors
    /// [`FrozenError::Gone`]: the hold slipped already.
    pub(super) fn new(frozen: Frozen, clock: &Arc<GenerationClock>) -> Result<Self, FrozenError> {
        let Frozen {
            description,
            hold,
            survey,
            survey_again,
        } = frozen;
        let generation = if description.stability == Stability::Pinned {
            clock.next()
        } else {
            Generation::NEVER_DIRECT
        };
        let inner = Arc::new(Inner {
            loss: Loss::none_of(description.uuid),
            description,
            hold,
            size: survey.size,
            kind: survey.kind,
            placement: RwLock::new(Arc::new(Placement::first(survey, generation))),
            tries: Tries::new(),
            survey_again,
            clock: Arc::clone(clock),
            behind: DropBehind::default(),
        });
        inner.check_content()?;
        inner.check_mapping();
        Ok(Self(inner))
    }
}

impl Drop for PinnedImage {
    fn drop(&mut self) {
        self.thaw();
    }
}

impl Inner {
    // A placement is put there whole, so what a panic left under this lock is good.
    fn placement(&self) -> Arc<Placement> {
        Arc::clone(&self.placement.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn check_content(&self) -> Result<(), FrozenError> {
        let mut slipped = false;
        let look = || Ok(self.hold.check_content().inspect_err(|_| slipped = true));
        let sampled = self.loss.sample(look);
        // Gone first: whoever reads meanwhile sees it before anybody can write.
        if slipped {
            self.hold.let_openers_in();
        }
        sampled
    }

    /// The map and the generation that stand now.
    fn check_mapping(self: &Arc<Self>) -> (Arc<Placement>, Generation) {
        let placement = self.placement();
        match placement.check(&*self.hold) {
            Standing::Good(generation) => return (placement, generation),
            Standing::Slipped(reason) => {
                self.tell(Outcome::Never(reason.to_owned()));
                return (placement, Generation::NEVER_DIRECT);
            }
            Standing::Moved(reason) => {
                tracing::warn!(frozen = %self.description.uuid, reason, "a mapping is lost: over NBD until there is another");
                // Told of at once: whoever finds it out may be in a hurry, and whoever asks next waits.
                self.map_again();
                return (placement, Generation::NEVER_DIRECT);
            }
            Standing::Lost => {
                self.map_again();
                self.tries.wait();
            }
        }
        let placement = self.placement();
        match placement.check(&*self.hold) {
            Standing::Good(generation) => (placement, generation),
            Standing::Slipped(reason) => {
                self.tell(Outcome::Never(reason.to_owned()));
                (placement, Generation::NEVER_DIRECT)
            }
            // Whoever asks next has it mapped again.
            Standing::Moved(_) | Standing::Lost => (placement, Generation::NEVER_DIRECT),
        }
    }

    /// Has the volume mapped again, unless somebody does already, or did a moment ago. On a thread of its own, because a device that is
    /// being moved may make it wait.
    fn map_again(self: &Arc<Self>) {
        if !self.tries.begin() {
            return;
        }
        let inner = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("map again".to_owned())
            .spawn(move || {
                let tried = catch_unwind(AssertUnwindSafe(|| inner.try_again()));
                let failed = |_| Outcome::NotYet("a bug of ours".to_owned(), None);
                inner.tell(tried.unwrap_or_else(failed));
            });
        if let Err(error) = spawned {
            self.tries.end(Outcome::NotYet(error.to_string(), None));
        }
    }

    fn tell(&self, outcome: Outcome) {
        let frozen = self.description.uuid;
        match &outcome {
            Outcome::Mapped => tracing::info!(%frozen, "mapped again"),
            Outcome::NotYet(reason, _) => tracing::info!(%frozen, reason, "cannot be mapped again yet"),
            Outcome::Never(reason) => {
                tracing::warn!(%frozen, reason, "not mapped again: from now on over NBD")
            }
        }
        self.tries.end(outcome);
    }

    fn try_again(&self) -> Outcome {
        // What holds its own extents where they are has to stand, or no map is worth anything.
        if let Err(reason) = self.hold.check_mapping() {
            return Outcome::Never(reason);
        }
        if self.check_content().is_err() {
            return Outcome::Never("its content is lost".to_owned());
        }
        let survey = match (self.survey_again)(self.hold.file()) {
            Ok(survey) => survey,
            Err(error) => return Outcome::NotYet(error.to_string(), None),
        };
        if (survey.size, survey.kind) != (self.size, self.kind) {
            return Outcome::Never("it is not the volume that it was".to_owned());
        }
        let pieces = self.placement().pieces_on(&survey);
        if !pieces.are_located() {
            let (reason, witness) = (survey.why_opaque(), survey.witness);
            return Outcome::NotYet(reason, Some(Arc::new(move || witness.check().is_err())));
        }
        let later = Placement::new(survey.graph, pieces, self.clock.next(), survey.witness);
        // Whatever happened while it was made is seen by now, and costs this map; what happens from here on is seen by whoever asks.
        match later.check(&*self.hold) {
            Standing::Good(_) => {}
            Standing::Slipped(reason) => return Outcome::Never(reason.to_owned()),
            Standing::Moved(reason) => {
                let happened = reason.to_owned();
                return Outcome::NotYet(happened, Some(Arc::new(|| true)));
            }
            Standing::Lost => return Outcome::NotYet("it was lost at once".to_owned(), None),
        }
        *self.placement.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(later);
        Outcome::Mapped
    }

    fn goes_through_the_page_cache(&self, offset: u64, length: usize) {
        if let Some(range) = ByteRange::new(offset, length as u64) {
            self.behind.read(self.hold.file(), range);
        }
    }

    fn copy(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.kind {
            VolumeKind::File | VolumeKind::DeclaredDisk => {
                self.goes_through_the_page_cache(offset, buf.len());
                self.hold.file().read_exact_at(buf, offset)
            }
            // The page cache of a block device is not coherent with what other machines, or file systems, do; so past it.
            VolumeKind::BlockDevice => read_direct(self.hold.file(), offset, buf),
        }
    }
}

impl FrozenImage for PinnedImage {
    fn description(&self) -> &Description {
        &self.0.description
    }

    fn size(&self) -> u64 {
        self.0.size
    }

    fn graph(&self) -> Arc<StoreGraph> {
        Arc::clone(self.0.placement().graph())
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        // Both witnesses are sampled now, after the request came in (law H4).
        let (placement, generation) = self.0.check_mapping();
        self.0.check_content()?;
        Ok(placement.status(range, generation, limit))
    }

    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        Ok(self.0.placement().content(range, limit))
    }

    /// While a new map is made, whoever asks waits for it a moment.
    fn answers_at_once(&self) -> bool {
        !self.0.placement().is_lost() || self.0.tries.are_over()
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.0.check_content()
    }

    /// The page cache of a block device is not read, see `copy`.
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool, FrozenError> {
        if self.0.kind == VolumeKind::BlockDevice {
            return Ok(false);
        }
        self.0.goes_through_the_page_cache(offset, buf.len());
        let mut got = 0;
        while got < buf.len() {
            match page_cache::read_cached(self.0.hold.file(), &mut buf[got..], offset + got as u64) {
                Ok(0) => return Ok(false),
                Ok(count) => got += count,
                // Whoever reads it with patience finds out what is wrong.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn immutable_file(&self, range: ByteRange) -> Result<Option<Arc<File>>, FrozenError> {
        if !self.0.hold.is_for_ever() || self.0.kind == VolumeKind::BlockDevice {
            return Ok(None);
        }
        let file = self.0.hold.file();
        self.0.behind.read(file, range);
        let cached = page_cache::is_cached(file, range.start(), range.len()).unwrap_or(false);
        Ok(cached.then(|| Arc::clone(file)))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        self.0.check_content()?;
        let copied = self.0.copy(offset, buf);
        // What was copied counts only if the content still stood afterwards (law H5); a lost content explains an error better, too.
        self.0.check_content()?;
        Ok(copied?)
    }

    fn changed_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        self.changes_since(older)
    }

    /// The clone holds on to what it shares with later ones.
    fn can_be_parent(&self) -> bool {
        self.is_comparable()
    }

    fn thaw(&self) {
        // Gone first: whoever reads meanwhile sees it before anybody can write.
        self.0.loss.thaw();
        self.0.hold.end();
    }
}

#[cfg(test)]
mod tests;
