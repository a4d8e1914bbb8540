//! The frozen image: map, generations and both witnesses of a snapshot.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::exception_store::{Geometry, StoreError};
use super::log::{Log, Source};
use super::table::Sample;
use crate::frozen::{Description, FrozenError, FrozenImage, StatusExtent};
use crate::generation::{Generation, GenerationClock};
use crate::limits::{LOG_PATIENCE, LOG_POLL};
use crate::map::{Content, Extent};
use crate::range::ByteRange;
use crate::store::{Place, StoreGraph, StoreId};

/// A snapshot as the kernel keeps it. Tests have a model of it.
pub(super) trait Snapshot: Send + Sync {
    /// The status of the live table, as it is when this is called.
    fn sample(&self) -> io::Result<Sample>;

    /// Reads the exception store, past every cache.
    fn read_store(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Reads the snapshot device, past every cache.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Looks up afresh where origin and store lie.
    ///
    /// # Errors
    /// [`FrozenError::Gone`] where the device has another table by now.
    fn survey(&self) -> Result<Survey, FrozenError>;

    /// Removes it, once.
    fn remove(&self);
}

/// Where origin and exception store lie, and what notices that they were moved.
pub(super) struct Survey {
    pub(super) graph: StoreGraph,
    pub(super) origin: StoreId,
    pub(super) store: StoreId,
    pub(super) witness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// How long a log is waited for that is shorter than the status says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// In all.
    pub(super) whole: Duration,
    /// Between two reads.
    pub(super) poll: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            whole: LOG_PATIENCE,
            poll: LOG_POLL,
        }
    }
}

/// What an answer may tell of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Confirmed {
    /// All places: the log is as long as the status says.
    All,
    /// Those in the store only, which hold for good once they are in the log.
    Copied,
    /// None.
    Nothing,
}

struct State {
    log: Log,
    witness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Why there are no places any more, for good.
    places_lost: Option<String>,
}

/// A frozen image on a classic snapshot. Dropped, it is thawed.
pub(crate) struct LvmSnapshotImage {
    description: Description,
    size: u64,
    geometry: Geometry,
    graph: StoreGraph,
    origin: StoreId,
    store: StoreId,
    clock: Arc<GenerationClock>,
    patience: Patience,
    snapshot: Box<dyn Snapshot>,
    state: Mutex<State>,
    /// Why the content is lost (law H6).
    gone: OnceLock<String>,
}

impl LvmSnapshotImage {
    pub(super) fn new(
        description: Description,
        size: u64,
        geometry: Geometry,
        snapshot: Box<dyn Snapshot>,
        survey: Survey,
        clock: &Arc<GenerationClock>,
    ) -> Self {
        let unmapped = (!survey.graph.reaches_disk()).then(|| "it lies on no disk that is known".to_owned());
        Self {
            description,
            size,
            geometry,
            origin: survey.origin,
            store: survey.store,
            graph: survey.graph,
            clock: Arc::clone(clock),
            patience: Patience::default(),
            snapshot,
            state: Mutex::new(State {
                log: Log::new(geometry, size, clock.next()),
                witness: survey.witness,
                places_lost: unmapped,
            }),
            gone: OnceLock::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn patient(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Samples both witnesses for the first time.
    pub(super) fn check(&self) -> Result<(), FrozenError> {
        self.follow(&mut self.state()).map(drop)
    }

    // A panic of one thread leaves nothing half done under this lock that would be believed: the log only grows, in whole entries.
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

    /// The sectors that are allocated now: sampled when this is called, never earlier (law H4).
    fn sample(&self) -> Result<u64, FrozenError> {
        let sampled = match self.gone.get() {
            Some(reason) => return Err(FrozenError::Gone(reason.clone())),
            None => self.snapshot.sample()?,
        };
        match (sampled, self.gone.get()) {
            // Thawed meanwhile: the device may be another one by now.
            (_, Some(reason)) => Err(FrozenError::Gone(reason.clone())),
            (Sample::Lost(reason), None) => Err(self.lose(reason)),
            (Sample::Allocated(sectors), None) => Ok(sectors),
        }
    }

    fn lose_places(&self, state: &mut State, reason: String) -> Confirmed {
        tracing::warn!(frozen = %self.description.uuid, reason, "a mapping is lost: from now on over NBD");
        state.places_lost = Some(reason);
        Confirmed::Nothing
    }

    /// Samples both witnesses, and brings the map to where they are.
    fn follow(&self, state: &mut State) -> Result<Confirmed, FrozenError> {
        let allocated = self.sample()?;
        if state.places_lost.is_some() {
            return Ok(Confirmed::Nothing);
        }
        let begun = match self.geometry.begun(allocated) {
            // The log was read before this sample: what is in it had begun.
            Ok(begun) if begun < state.log.len() => Err(StoreError::Shrunk),
            other => other,
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(why) => return Ok(self.lose_places(state, why.to_string())),
        };
        if let Err(reason) = (state.witness)()
            && !self.look_again(state, reason)?
        {
            return Ok(Confirmed::Nothing);
        }
        self.read_log(state, begun)
    }

    /// Something happened to the layers below. Where they are as they were, only the generation has to be another: a table that was
    /// changed and changed back may have been overwritten in between.
    fn look_again(&self, state: &mut State, reason: String) -> Result<bool, FrozenError> {
        let survey = match self.snapshot.survey() {
            Ok(survey) => survey,
            Err(FrozenError::Gone(reason)) => return Err(self.lose(reason)),
            Err(FrozenError::Io(error)) => {
                tracing::warn!(frozen = %self.description.uuid, %error, "the layers below cannot be looked up: over NBD for now");
                return Ok(false);
            }
        };
        if (&survey.graph, survey.origin, survey.store) != (&self.graph, self.origin, self.store) {
            self.lose_places(state, reason);
            return Ok(false);
        }
        tracing::info!(frozen = %self.description.uuid, reason, "mapped again");
        state.witness = survey.witness;
        state.log.renew(self.clock.next());
        Ok(true)
    }

    /// Reads the log until it holds every copy that had begun. A copy is counted first and logged when it is done, so the log may be
    /// behind for as long as a copy takes.
    fn read_log(&self, state: &mut State, begun: u64) -> Result<Confirmed, FrozenError> {
        let deadline = Instant::now() + self.patience.whole;
        while state.log.len() < begun {
            let mut read = |offset: u64, buf: &mut [u8]| self.snapshot.read_store(offset, buf);
            let tail = match self.geometry.read_log(state.log.len(), begun, &mut read) {
                Ok(tail) => tail,
                Err(error) => {
                    // An answer to this one, if the content is lost; else the next one may have more luck.
                    self.sample()?;
                    tracing::warn!(frozen = %self.description.uuid, %error, "the log cannot be read: over NBD for now");
                    return Ok(Confirmed::Copied);
                }
            };
            if !tail.is_empty() {
                if let Err(why) = state.log.append(&tail, self.clock.next()) {
                    return Ok(self.lose_places(state, why.to_string()));
                }
                continue;
            }
            // What is being copied never comes to the log if the snapshot is lost meanwhile.
            self.sample()?;
            if Instant::now() >= deadline {
                tracing::warn!(frozen = %self.description.uuid, "copies do not end: over NBD for now");
                return Ok(Confirmed::Copied);
            }
            thread::sleep(self.patience.poll);
        }
        Ok(Confirmed::All)
    }

    fn extent(
        &self,
        (range, source, generation): (ByteRange, Source, Generation),
        confirmed: Confirmed,
    ) -> StatusExtent {
        let place = match (source, confirmed) {
            (Source::Origin, Confirmed::All) => Some(Place {
                store: self.origin,
                offset: range.start(),
            }),
            (Source::Store(offset), Confirmed::All | Confirmed::Copied) => Some(Place {
                store: self.store,
                offset,
            }),
            _ => None,
        };
        StatusExtent {
            range,
            content: Content::Data,
            generation: if place.is_some() {
                generation
            } else {
                Generation::NEVER_DIRECT
            },
            place,
        }
    }
}

impl FrozenImage for LvmSnapshotImage {
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
        let mut state = self.state();
        let confirmed = self.follow(&mut state)?;
        let extents = state.log.pieces(range).map(|piece| self.extent(piece, confirmed));
        Ok(StatusExtent::join(extents, limit.max(1)))
    }

    /// A block device does not know what of it is in use.
    fn content(&self, range: ByteRange, _: usize) -> Result<Vec<Extent>, FrozenError> {
        let content = Content::Data;
        Ok(vec![Extent { range, content }])
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.sample().map(drop)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        let copied = self.snapshot.read(offset, buf);
        // What was copied counts only if the snapshot still stood afterwards (law H5); that it did not explains an error better, too.
        self.sample()?;
        Ok(copied?)
    }

    fn thaw(&self) {
        // Gone first: whoever reads meanwhile sees it before the device is another's.
        self.gone.get_or_init(|| "it was thawed".to_owned());
        self.snapshot.remove();
    }
}

impl Drop for LvmSnapshotImage {
    fn drop(&mut self) {
        self.thaw();
    }
}
