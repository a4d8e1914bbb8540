//! The state of one frozen image that origin and image share: what moved where, and whether it still stands.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use uuid::Uuid;

use crate::cow::ground::{Survey, Witness};
use crate::cow::moves::{Moves, Source};
use crate::cow::slots::Slots;
use crate::cow::unit::{CopyUnit, Slot, Unit};
use crate::frozen::{Description, FrozenError, Stability, StatusExtent, Strength};
use crate::generation::{Generation, GenerationClock};
use crate::limits::COPY_AREA_HEADER;
use crate::map::{Content, ContentMap};
use crate::range::ByteRange;
use crate::storage::Standing;
use crate::store::{Place, StoreGraph, StoreId};

/// What readers and writers agree on, under one lock.
pub(super) struct State {
    pub(super) moves: Moves,
    /// Why the frozen image is gone, once it is.
    lost: Option<String>,
}

/// See the module.
pub(super) struct Frozen {
    pub(super) description: Description,
    pub(super) graph: Arc<StoreGraph>,
    pub(super) content: ContentMap,
    origin: Option<StoreId>,
    copy_area: Option<StoreId>,
    /// Of everything that has not moved.
    first: Generation,
    witness: Box<dyn Witness>,
    mapping_lost: OnceLock<String>,
    unit: CopyUnit,
    slots: Arc<Slots>,
    /// Whether what changes from here on is wanted when the image is gone.
    lineage_kept: AtomicBool,
    state: RwLock<State>,
}

impl Frozen {
    pub(super) fn new(survey: Survey, unit: CopyUnit, slots: Arc<Slots>, first: Generation) -> Self {
        let unlocated = survey.origin.is_none() && survey.copy_area.is_none();
        let opaque = unlocated || !survey.graph.reaches_disk();
        Self {
            description: Description {
                uuid: Uuid::new_v4(),
                method: "cow",
                strength: Strength::CrashConsistent,
                stability: if opaque {
                    Stability::Opaque
                } else {
                    Stability::Moves
                },
                attestation: survey.attestation,
                frozen_at: SystemTime::now(),
            },
            graph: Arc::new(survey.graph),
            content: survey.content,
            origin: survey.origin.filter(|_| !opaque),
            copy_area: survey.copy_area.filter(|_| !opaque),
            first: if opaque { Generation::NEVER_DIRECT } else { first },
            witness: survey.witness,
            mapping_lost: OnceLock::new(),
            unit,
            slots,
            lineage_kept: AtomicBool::new(false),
            state: RwLock::new(State {
                moves: Moves::new(unit),
                lost: None,
            }),
        }
    }

    /// Why what will be copied can be told no place on a disk, though the rest can. That no guard could be had was told when it was opened.
    pub(super) fn why_copies_have_no_place(&self) -> Option<String> {
        let copies = Place {
            store: self.copy_area?,
            offset: COPY_AREA_HEADER,
        };
        self.graph.resolve(copies, 1).opaque
    }

    // A panic of one thread leaves nothing half done under this lock: what it guards changes one step at a time.

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content is lost, for good: from the return of this call on no answer is given (H6).
    pub(super) fn lose(&self, reason: &str) {
        if self.end(reason) {
            tracing::error!(frozen = %self.description.uuid, reason, "the frozen image is gone");
        }
    }

    /// Ends the frozen image and gives back its slots; tells whether it stood until now.
    pub(super) fn end(&self, reason: &str) -> bool {
        let mut state = self.state_mut();
        if state.lost.is_some() {
            return false;
        }
        state.lost = Some(reason.to_owned());
        // Together with the word that it is gone: whoever finds the units unmoved finds that word too, after its read.
        let slots = state.moves.take_slots();
        drop(state);
        self.slots.image_ended(slots);
        true
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state().lost.is_some()
    }

    /// Whether what was just copied or looked up may be answered. Samples the witness now, after the fact, and then looks
    /// whether the image still stands.
    ///
    /// `Ok(false)`: the bytes are good, their places are not.
    pub(super) fn confirm(&self) -> Result<bool, FrozenError> {
        match self.witness.check() {
            Standing::Good => {}
            Standing::MappingLost(reason) => {
                if self.mapping_lost.set(reason.clone()).is_ok() {
                    tracing::warn!(frozen = %self.description.uuid, reason, "no more locations, all is read over NBD");
                }
            }
            Standing::ContentLost(reason) => self.lose(&reason),
        }
        match &self.state().lost {
            Some(reason) => Err(FrozenError::Gone(reason.clone())),
            None => Ok(self.mapping_lost.get().is_none()),
        }
    }

    /// The first `limit` extents of `range`, from one state of the map.
    pub(super) fn locate(&self, range: ByteRange, limit: usize) -> Vec<StatusExtent> {
        let state = self.state();
        let extents = self.content.within(range).flat_map(|extent| {
            // Zeroes are known from the freeze, whatever becomes of the origin: they never move.
            let zero = (extent.content != Content::Data)
                .then(|| self.status(extent.range, extent.content, self.first, None));
            let data = zero.is_none().then(|| state.moves.pieces(extent.range));
            zero.into_iter()
                .chain(data.into_iter().flatten().map(|(piece, source)| match source {
                    Source::Origin => {
                        let place = self.origin.map(|store| Place {
                            store,
                            offset: piece.start(),
                        });
                        self.status(piece, Content::Data, self.first, place)
                    }
                    Source::CopyArea { offset, generation } => {
                        let place = self.copy_area.map(|store| Place { store, offset });
                        self.status(piece, Content::Data, generation, place)
                    }
                }))
        });
        StatusExtent::join(extents, limit)
    }

    /// The same without any location.
    pub(super) fn locate_nothing(&self, range: ByteRange, limit: usize) -> Vec<StatusExtent> {
        let extents = self
            .content
            .within(range)
            .map(|e| self.status(e.range, e.content, Generation::NEVER_DIRECT, None));
        StatusExtent::join(extents, limit)
    }

    fn status(
        &self,
        range: ByteRange,
        content: Content,
        generation: Generation,
        place: Option<Place>,
    ) -> StatusExtent {
        let located = place.is_some() || content != Content::Data;
        StatusExtent {
            range,
            content,
            generation: if located {
                generation
            } else {
                Generation::NEVER_DIRECT
            },
            place,
        }
    }

    /// Whether the old data of `unit` has to be kept for this image, at this moment. Once it has not, it never has.
    pub(super) fn needs(&self, unit: Unit) -> bool {
        let state = self.state();
        state.lost.is_none() && !state.moves.contains(unit) && self.has_data(unit)
    }

    /// How many units have to be kept at most.
    pub(super) fn units_with_data(&self) -> u64 {
        let (mut count, mut next) = (0, 0);
        for extent in self.content.extents() {
            if extent.content == Content::Data {
                let units = self.unit.touching(extent.range);
                count += units.end - units.start.max(next);
                next = units.end;
            }
        }
        count
    }

    fn has_data(&self, unit: Unit) -> bool {
        let bytes = self.unit.bytes_of(unit..unit + 1, self.content.size());
        bytes.is_some_and(|bytes| !self.content.is_zero(bytes))
    }

    /// The switch: of those of `units` that this image needs, location and generation change together. The old data of consecutive
    /// units lies in consecutive slots from `first` on, complete on the device, and the caller holds these slots.
    pub(super) fn switch(&self, units: Range<Unit>, first: Slot, clock: &GenerationClock) {
        let mut state = self.state_mut();
        if state.lost.is_some() {
            return;
        }
        let mut generation = None;
        for (unit, slot) in units.zip(first..) {
            if self.has_data(unit) && !state.moves.contains(unit) {
                self.slots.hold(slot);
                let generation = *generation.get_or_insert_with(|| clock.next());
                state.moves.add(unit, slot, generation);
            }
        }
    }

    /// Whether later frozen images shall know what changed since this one, once it has ended.
    pub(super) fn keep_lineage(&self, kept: bool) {
        self.lineage_kept.store(kept, Ordering::SeqCst);
    }

    pub(super) fn is_lineage_kept(&self) -> bool {
        self.lineage_kept.load(Ordering::SeqCst)
    }
}
