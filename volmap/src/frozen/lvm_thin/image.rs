//! The frozen image: places that stay, a generation for all of them, and both witnesses.

mod lineage;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::target::ThinTarget;
use crate::frozen::graph_cell::GraphCell;
use crate::frozen::loss::Loss;
use crate::frozen::pieces::Pieces;
use crate::frozen::{
    ChangedMap, Description, FreeSpace, FrozenError, FrozenImage, NoFreeSpace, NoLineage, Stability, Status,
    Strength,
};
use crate::generation::{Generation, GenerationClock};
use crate::layers::FileExtents;
use crate::limits::{METADATA_SNAPSHOT_PATIENCE_AGAIN, THIN_LOOK_AGAIN_PAUSE, THIN_LOOK_AGAIN_SHARE};
use crate::map::{Content, ContentMap, Extent};
use crate::range::ByteRange;
use crate::store::{Below, Segment, Store, StoreGraph, StoreId};

/// What a look at the snapshot says of its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Sample {
    /// Nobody wrote to it so far.
    Frozen,
    /// It is not, or nobody knows any more whether it is, what was frozen.
    Lost(String),
}

/// A thin snapshot as the kernel keeps it. Tests have a model of it.
pub(super) trait Snapshot: Send + Sync {
    /// Looks whether it still is what was frozen, when this is called.
    fn sample(&self) -> io::Result<Sample>;

    /// Why its pool cannot be trusted to leave mapped blocks alone, if so.
    fn doubt(&self) -> io::Result<Option<String>>;

    /// Reads its device, past every cache.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Reads its map, and looks up where it lies.
    ///
    /// # Errors
    /// [`NoSurvey`].
    fn survey(&self, patience: Duration) -> Result<Survey, NoSurvey>;

    /// The thin device that it is; `None` where another volume lies under it, so that what is not mapped is not zeroes.
    fn device(&self) -> Option<ThinTarget>;

    /// Its own map, and that of an older device of its pool, of `size` bytes, as both are at one time.
    ///
    /// # Errors
    /// [`NoSurvey`].
    fn maps_beside(&self, older: ThinTarget, size: u64, patience: Duration) -> Result<Maps, NoSurvey>;

    /// What nobody has of the file system on it.
    ///
    /// # Errors
    /// [`NoFreeSpace`].
    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace>;

    /// Removes it, once.
    fn remove(&self);
}

/// Where two devices lie in their pool.
pub(super) struct Maps {
    pub(super) then: FileExtents,
    pub(super) now: FileExtents,
}

/// Where a snapshot lies, and what notices that it was moved.
pub(super) struct Survey {
    pub(super) graph: StoreGraph,
    pub(super) top: StoreId,
    pub(super) content: ContentMap,
    pub(super) witness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Survey {
    /// Of a snapshot that is one store without any place.
    pub(super) fn opaque(store: Store) -> Self {
        let mut graph = StoreGraph::new();
        let content = ContentMap::uniform(store.size, Content::Data);
        Self {
            top: graph.add(store),
            graph,
            content,
            witness: Box::new(|| Ok(())),
        }
    }
}

/// Why there is no survey.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NoSurvey {
    /// It was written to, or is another one.
    Gone(String),
    /// Its map cannot be read, and that will not get better.
    Opaque(String),
    /// Somebody or something is in the way.
    NotNow(String),
}

struct State {
    top: StoreId,
    pieces: Pieces,
    /// Of all places.
    generation: Generation,
    witness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Why there are no places any more, for good.
    places_lost: Option<String>,
    /// A survey costs the pool a commit, and us a walk through its trees: not before this.
    next_survey: Instant,
}

/// A frozen image on a thin snapshot. Dropped, it is thawed.
pub(crate) struct LvmThinImage {
    description: Description,
    size: u64,
    content: ContentMap,
    clock: Arc<GenerationClock>,
    /// Least time between two surveys.
    pause: Duration,
    snapshot: Box<dyn Snapshot>,
    /// Written under the lock of the state, and read without it.
    graph: GraphCell,
    state: Mutex<State>,
    loss: Loss,
}

impl LvmThinImage {
    /// The image of a snapshot that was surveyed.
    pub(super) fn new(
        description: Description,
        size: u64,
        snapshot: Box<dyn Snapshot>,
        survey: Survey,
        clock: &Arc<GenerationClock>,
    ) -> Self {
        let direct = description.stability == Stability::Pinned;
        Self {
            loss: Loss::none_of(description.uuid),
            description,
            size,
            clock: Arc::clone(clock),
            pause: THIN_LOOK_AGAIN_PAUSE,
            snapshot,
            state: Mutex::new(State {
                pieces: Pieces::of(&survey.graph, survey.top, &survey.content, direct),
                top: survey.top,
                generation: clock.next(),
                witness: survey.witness,
                places_lost: (!direct).then(|| "it has none".to_owned()),
                next_survey: Instant::now(),
            }),
            graph: GraphCell::new(survey.graph),
            content: survey.content,
        }
    }

    #[cfg(test)]
    pub(super) fn pausing(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Samples both witnesses for the first time.
    pub(super) fn check(&self) -> Result<(), FrozenError> {
        self.follow(&mut self.state()).map(drop)
    }

    // Whatever a panic leaves under this lock was written whole: each field by itself is never believed without the witness.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the content still stands: looked at when this is called, never earlier (law H4).
    fn sample(&self) -> Result<(), FrozenError> {
        self.loss.sample(|| {
            Ok(match self.snapshot.sample()? {
                Sample::Frozen => Ok(()),
                Sample::Lost(reason) => Err(reason),
            })
        })
    }

    fn lose_places(&self, state: &mut State, reason: String) -> Generation {
        tracing::warn!(frozen = %self.description.uuid, reason, "a mapping is lost: from now on over NBD");
        state.places_lost = Some(reason);
        Generation::NEVER_DIRECT
    }

    /// Samples both witnesses; gives the generation that stands now.
    fn follow(&self, state: &mut State) -> Result<Generation, FrozenError> {
        self.sample()?;
        if state.places_lost.is_some() {
            return Ok(Generation::NEVER_DIRECT);
        }
        if let Some(doubt) = self.snapshot.doubt()? {
            return Ok(self.lose_places(state, doubt));
        }
        match (state.witness)() {
            Ok(()) => Ok(state.generation),
            Err(reason) => self.look_again(state, reason),
        }
    }

    /// Something happened to the layers below, or to any other device of the device-mapper. Also where everything is as it was the
    /// generation has to be another: a table that was changed and changed back may have been overwritten in between.
    fn look_again(&self, state: &mut State, reason: String) -> Result<Generation, FrozenError> {
        let begun = Instant::now();
        if begun < state.next_survey {
            return Ok(Generation::NEVER_DIRECT);
        }
        let surveyed = self.snapshot.survey(METADATA_SNAPSHOT_PATIENCE_AGAIN);
        state.next_survey = Instant::now() + self.pause.max(begun.elapsed() * THIN_LOOK_AGAIN_SHARE);
        let survey = match surveyed {
            Ok(survey) => survey,
            Err(NoSurvey::Gone(reason)) => return Err(self.loss.lose(reason)),
            Err(NoSurvey::Opaque(reason)) => return Ok(self.lose_places(state, reason)),
            Err(NoSurvey::NotNow(why)) => {
                tracing::warn!(frozen = %self.description.uuid, why, "cannot be mapped again yet: over NBD for now");
                return Ok(Generation::NEVER_DIRECT);
            }
        };
        let before = self.graph.get();
        let (then, now) = (before.store(state.top), survey.graph.store(survey.top));
        if survey.content != self.content || !same_blocks(&then.below, &now.below) {
            return Err(self
                .loss
                .lose("its thin snapshot maps other blocks than it did".to_owned()));
        }
        let pieces = Pieces::of(&survey.graph, survey.top, &self.content, true);
        if !pieces.are_located() {
            // The witness that was lost stays, so that this is tried again.
            tracing::warn!(frozen = %self.description.uuid, reason, "its pool leads to no disk that is known: over NBD for now");
            return Ok(Generation::NEVER_DIRECT);
        }
        tracing::info!(frozen = %self.description.uuid, reason, "mapped again");
        state.top = survey.top;
        self.graph.set(survey.graph);
        state.pieces = pieces;
        state.witness = survey.witness;
        state.generation = self.clock.next();
        // What was sampled before the survey says nothing of what happened since.
        self.sample()?;
        match (state.witness)() {
            Ok(()) => Ok(state.generation),
            Err(_) => Ok(Generation::NEVER_DIRECT),
        }
    }
}

/// Whether two maps name the same blocks of the pool, wherever the pool lies. Where one is not known, nothing says that they differ.
fn same_blocks(then: &Below, now: &Below) -> bool {
    match (then, now) {
        (Below::Segments(then), Below::Segments(now)) => {
            let blocks = |segment: &Segment| (segment.range, segment.below.offset);
            then.iter().map(blocks).eq(now.iter().map(blocks))
        }
        _ => true,
    }
}

impl FrozenImage for LvmThinImage {
    fn description(&self) -> &Description {
        &self.description
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn graph(&self) -> Arc<StoreGraph> {
        self.graph.get()
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        let mut state = self.state();
        let generation = self.follow(&mut state)?;
        Ok(Status {
            graph: self.graph.get(),
            extents: state.pieces.status(range, generation, limit),
        })
    }

    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        Ok(self.content.within(range).take(limit.max(1)).collect())
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.sample()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        let copied = self.snapshot.read(offset, buf);
        // What was copied counts only if nothing was written before the copy ended (law H5); that explains an error better, too.
        self.sample()?;
        Ok(copied?)
    }

    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        if self.description.strength != Strength::FileSystem {
            return Err(NoFreeSpace::NotFrozen);
        }
        let told = self.snapshot.free_space();
        // What was told counts only if it was told of the frozen bytes; that they are gone explains an error better, too.
        self.stands()?;
        told
    }

    fn changed_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        self.changes_since(older)
    }

    /// The snapshot holds on to the blocks that it shares with later ones.
    fn can_be_parent(&self) -> bool {
        self.is_comparable()
    }

    fn thaw(&self) {
        // Gone first: whoever reads meanwhile sees it before the device is another's.
        self.loss.thaw();
        self.snapshot.remove();
    }
}

impl Drop for LvmThinImage {
    fn drop(&mut self) {
        self.thaw();
    }
}

#[cfg(test)]
mod tests;
