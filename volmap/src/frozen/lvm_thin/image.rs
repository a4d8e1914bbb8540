//! The frozen image: places that stay, a generation for all of them, and both witnesses.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::frozen::pieces::{Piece, pieces};
use crate::frozen::{Description, FrozenError, FrozenImage, Stability, StatusExtent};
use crate::generation::{Generation, GenerationClock};
use crate::limits::{METADATA_SNAPSHOT_PATIENCE_AGAIN, THIN_LOOK_AGAIN_PAUSE, THIN_LOOK_AGAIN_SHARE};
use crate::map::{Content, ContentMap, Extent};
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, Store, StoreGraph, StoreId};

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

    /// Removes it, once.
    fn remove(&self);
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
    graph: StoreGraph,
    top: StoreId,
    content: ContentMap,
    /// Sorted, total.
    pieces: Vec<Piece>,
    clock: Arc<GenerationClock>,
    /// Least time between two surveys.
    pause: Duration,
    snapshot: Box<dyn Snapshot>,
    state: Mutex<State>,
    /// Why the content is lost (law H6).
    gone: OnceLock<String>,
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
            description,
            size,
            pieces: pieces(&survey.graph, survey.top, &survey.content, direct),
            graph: survey.graph,
            top: survey.top,
            content: survey.content,
            clock: Arc::clone(clock),
            pause: THIN_LOOK_AGAIN_PAUSE,
            snapshot,
            state: Mutex::new(State {
                generation: clock.next(),
                witness: survey.witness,
                places_lost: (!direct).then(|| "it has none".to_owned()),
                next_survey: Instant::now(),
            }),
            gone: OnceLock::new(),
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

    fn lose(&self, reason: String) -> FrozenError {
        let reason = self.gone.get_or_init(|| {
            tracing::error!(frozen = %self.description.uuid, reason, "the frozen image is gone");
            reason
        });
        FrozenError::Gone(reason.clone())
    }

    /// Whether the content still stands: looked at when this is called, never earlier (law H4).
    fn sample(&self) -> Result<(), FrozenError> {
        let sampled = match self.gone.get() {
            Some(reason) => return Err(FrozenError::Gone(reason.clone())),
            None => self.snapshot.sample()?,
        };
        match (sampled, self.gone.get()) {
            // Thawed meanwhile: the device may be another one by now.
            (_, Some(reason)) => Err(FrozenError::Gone(reason.clone())),
            (Sample::Lost(reason), None) => Err(self.lose(reason)),
            (Sample::Frozen, None) => Ok(()),
        }
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

    /// Something happened to the layers below, or to any other device of the device-mapper. Where everything is as it was, only the
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
            Err(NoSurvey::Gone(reason)) => return Err(self.lose(reason)),
            Err(NoSurvey::Opaque(reason)) => return Ok(self.lose_places(state, reason)),
            Err(NoSurvey::NotNow(why)) => {
                tracing::warn!(frozen = %self.description.uuid, why, "cannot be mapped again yet: over NBD for now");
                return Ok(Generation::NEVER_DIRECT);
            }
        };
        let (then, now) = (self.graph.store(self.top), survey.graph.store(survey.top));
        if survey.content != self.content || !same_blocks(&then.below, &now.below) {
            return Err(self.lose("its thin snapshot maps other blocks than it did".to_owned()));
        }
        if (&survey.graph, survey.top) != (&self.graph, self.top) {
            return Ok(self.lose_places(state, reason));
        }
        tracing::info!(frozen = %self.description.uuid, reason, "mapped again");
        state.witness = survey.witness;
        state.generation = self.clock.next();
        // What was sampled before the survey says nothing of what happened since.
        self.sample()?;
        match (state.witness)() {
            Ok(()) => Ok(state.generation),
            Err(_) => Ok(Generation::NEVER_DIRECT),
        }
    }

    /// The pieces of `range`, clipped to it.
    fn pieces_of(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, &Piece)> {
        let first = self.pieces.partition_point(|p| p.range.end() <= range.start());
        self.pieces[first..]
            .iter()
            .map_while(move |piece| Some((piece.range.intersection(range)?, piece)))
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

    fn graph(&self) -> &StoreGraph {
        &self.graph
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Vec<StatusExtent>, FrozenError> {
        let generation = self.follow(&mut self.state())?;
        let answer = self.pieces_of(range).map(|(clipped, piece)| {
            let place = (piece.located && generation.is_direct()).then_some(Place {
                store: self.top,
                offset: clipped.start(),
            });
            let zero = piece.content != Content::Data;
            StatusExtent {
                range: clipped,
                content: piece.content,
                generation: if place.is_some() || zero {
                    generation
                } else {
                    Generation::NEVER_DIRECT
                },
                place,
            }
        });
        Ok(answer.take(limit.max(1)).collect())
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

    fn thaw(&self) {
        // Gone first: whoever reads meanwhile sees it before the device is another's.
        self.gone.get_or_init(|| "it was thawed".to_owned());
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
