//! The frozen image: map, generations and both witnesses of a snapshot.

mod lineage;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::exception_store::{Geometry, StoreError};
use super::log::{Log, Source};
use super::table::Sample;
use crate::frozen::graph_cell::GraphCell;
use crate::frozen::loss::Loss;
use crate::frozen::{
    ChangedMap, Description, FreeSpace, FrozenError, FrozenImage, NoFreeSpace, NoLineage, Status,
    StatusExtent, Strength,
};
use crate::generation::{Generation, GenerationClock};
use crate::limits::{LOG_PATIENCE, LOG_POLL, REMAP_PAUSE, REMAP_SHARE};
use crate::map::{Content, Extent};
use crate::range::ByteRange;
use crate::store::{Place, StoreGraph, StoreId};
use crate::sys::DeviceNumber;

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

    /// What it is a snapshot of: the device that holds the origin's bytes.
    fn origin(&self) -> DeviceNumber;

    /// What nobody has of the file system on it.
    ///
    /// # Errors
    /// [`NoFreeSpace`].
    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace>;

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
    origin: StoreId,
    store: StoreId,
    witness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Why there are no places any more, for good.
    places_lost: Option<String>,
    /// A survey where none was of use a moment ago: not before this.
    next_survey: Instant,
}

/// A frozen image on a classic snapshot. Dropped, it is thawed.
pub(crate) struct LvmSnapshotImage {
    description: Description,
    size: u64,
    geometry: Geometry,
    clock: Arc<GenerationClock>,
    patience: Patience,
    snapshot: Box<dyn Snapshot>,
    /// Written under the lock of the state, and read without it.
    graph: GraphCell,
    state: Mutex<State>,
    loss: Loss,
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
            loss: Loss::none_of(description.uuid),
            description,
            size,
            geometry,
            clock: Arc::clone(clock),
            patience: Patience::default(),
            snapshot,
            graph: GraphCell::new(survey.graph),
            state: Mutex::new(State {
                log: Log::new(geometry, size, clock.next()),
                origin: survey.origin,
                store: survey.store,
                witness: survey.witness,
                places_lost: unmapped,
                next_survey: Instant::now(),
            }),
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

    /// The sectors that are allocated now: sampled when this is called, never earlier (law H4).
    fn sample(&self) -> Result<u64, FrozenError> {
        self.loss.sample(|| {
            Ok(match self.snapshot.sample()? {
                Sample::Allocated(sectors) => Ok(sectors),
                Sample::Lost(reason) => Err(reason),
            })
        })
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

    /// Something happened to the layers below. Also where they are as they were the generation has to be another: a table that was
    /// changed and changed back may have been overwritten in between.
    fn look_again(&self, state: &mut State, reason: String) -> Result<bool, FrozenError> {
        let begun = Instant::now();
        if begun < state.next_survey {
            return Ok(false);
        }
        let not_now = match self.snapshot.survey() {
            Ok(survey) if survey.graph.reaches_disk() => Ok(survey),
            Ok(_) => Err("they lead to no disk that is known".to_owned()),
            Err(FrozenError::Gone(reason)) => return Err(self.loss.lose(reason)),
            Err(FrozenError::Io(error)) => Err(error.to_string()),
        };
        let survey = match not_now {
            Ok(survey) => survey,
            Err(why) => {
                // The witness that was lost stays, so that this is tried again.
                state.next_survey = Instant::now() + REMAP_PAUSE.max(begun.elapsed() * REMAP_SHARE);
                tracing::warn!(frozen = %self.description.uuid, why, "the layers below cannot be followed: over NBD for now");
                return Ok(false);
            }
        };
        tracing::info!(frozen = %self.description.uuid, reason, "mapped again");
        (state.origin, state.store) = (survey.origin, survey.store);
        self.graph.set(survey.graph);
        state.witness = survey.witness;
        state.log.renew(self.clock.next());
        // Where something happened while it was looked up, nothing counts yet.
        Ok((state.witness)().is_ok())
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
        state: &State,
        (range, source, generation): (ByteRange, Source, Generation),
        confirmed: Confirmed,
    ) -> StatusExtent {
        let place = match (source, confirmed) {
            (Source::Origin, Confirmed::All) => Some(Place {
                store: state.origin,
                offset: range.start(),
            }),
            (Source::Store(offset), Confirmed::All | Confirmed::Copied) => Some(Place {
                store: state.store,
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

    fn graph(&self) -> Arc<StoreGraph> {
        self.graph.get()
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        let mut state = self.state();
        let confirmed = self.follow(&mut state)?;
        let extents = state
            .log
            .pieces(range)
            .map(|piece| Self::extent(&state, piece, confirmed));
        Ok(Status {
            graph: self.graph.get(),
            extents: StatusExtent::join(extents, limit.max(1)),
        })
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

    /// The snapshot goes on to log what is overwritten.
    fn can_be_parent(&self) -> bool {
        self.is_comparable()
    }

    fn thaw(&self) {
        // Gone first: whoever reads meanwhile sees it before the device is another's.
        self.loss.thaw();
        self.snapshot.remove();
    }
}

impl Drop for LvmSnapshotImage {
    fn drop(&mut self) {
        self.thaw();
    }
}
