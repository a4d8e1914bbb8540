//! Origin and copy area as real files and devices: opened, mapped, and witnessed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cow::copy_area::{self, CopyAreaSpec};
use crate::cow::error::CowError;
use crate::cow::ground::{Ground, Survey, Witness};
use crate::cow::origin::{CopyOptions, Origin};
use crate::frozen::Attestation;
use crate::generation::GenerationClock;
use crate::layers::{LayerWitness, Layers, Mapping};
use crate::limits::COPY_UNIT;
use crate::storage::Backing;
use crate::storage::{Caching, Guard, StorageFile};
use crate::storage::{Standing, at, settle_again};
use crate::store::StoreGraph;

/// Origin and copy area on real paths, each opened once and guarded, for [`Origin::with_backings`].
pub struct Storage {
    /// The origin.
    pub origin: Box<dyn Backing>,
    /// The copy area, written once all over.
    pub copy_area: Box<dyn Backing>,
    /// Maps both at each freeze.
    pub ground: Box<dyn Ground>,
}

impl Storage {
    /// Opens both. A file must not be open anywhere else and is held by a write lease from now on: others who open it wait,
    /// up to `/proc/sys/fs/lease-break-time`. A block device is claimed. A file that `layers` knows as a disk is neither.
    ///
    /// # Errors
    /// [`CowError`]; a copy area that was made here is removed again where it could not be prepared.
    pub fn open(path: &Path, copy_area: &CopyAreaSpec, layers: Arc<Layers>) -> Result<Self, CowError> {
        let origin = Arc::new(StorageFile::open(path, Caching::PageCache, &layers)?);
        let copy_area = Arc::new(copy_area::prepare(copy_area, &origin, &layers)?);
        let ground = FileGround {
            origin: Arc::clone(&origin),
            copy_area: Arc::clone(&copy_area),
            unsettled: AtomicBool::new(false),
            layers,
        };
        Ok(Self {
            origin: Box::new(origin),
            copy_area: Box::new(copy_area),
            ground: Box::new(ground),
        })
    }
}

impl Origin {
    /// Opens an origin and its copy area; [`Storage::open`] says how.
    ///
    /// # Errors
    /// [`CowError`].
    pub fn open(
        path: &Path,
        copy_area: &CopyAreaSpec,
        layers: Arc<Layers>,
        clock: Arc<GenerationClock>,
    ) -> Result<Arc<Self>, CowError> {
        let storage = Storage::open(path, copy_area, layers)?;
        let options = CopyOptions {
            on_full: copy_area.on_full,
            ..CopyOptions::default()
        };
        Self::with_backings(storage.origin, storage.copy_area, storage.ground, clock, options)
    }
}

struct FileGround {
    origin: Arc<StorageFile>,
    copy_area: Arc<StorageFile>,
    /// Somebody had the copy area open, and it has not been settled since. It outlives a freeze that fails: the guard is good by then,
    /// and says nothing of it any more.
    unsettled: AtomicBool,
    layers: Arc<Layers>,
}

impl FileGround {
    fn map(&self, graph: &mut StoreGraph, storage: &StorageFile) -> Result<Mapping, CowError> {
        let mapping = (self.layers)
            .map(graph, &storage.file, &storage.path)
            .map_err(at(&storage.path, "finding out where it lies"))?;
        Ok(mapping)
    }
}

impl Ground for FileGround {
    fn settle(&self) -> Result<(), CowError> {
        if self.copy_area.renew_guard()? {
            self.unsettled.store(true, Ordering::SeqCst);
        }
        if self.unsettled.load(Ordering::SeqCst) {
            // Old data goes where the map says only if every block stays where it is when it is written to. A clone of the copy
            // area that was made meanwhile (`cp` does) would have it moved.
            settle_again(&self.copy_area, COPY_UNIT)
                .map_err(at(&self.copy_area.path, "writing it once all over again"))?;
            self.unsettled.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn survey(&self, alone: bool) -> Result<Survey, CowError> {
        // Held from before the map: what happens from here on is noticed. What was lost while frozen images stand stays lost, as they
        // have to notice it too.
        let origin_was_open = alone && self.origin.renew_guard()?;
        if alone {
            // Nothing is left to do, as a rule: somebody would have come since it was settled ahead.
            self.settle()?;
        }
        let mut graph = StoreGraph::new();
        let copy_area = self.map(&mut graph, &self.copy_area)?;
        let origin = self.map(&mut graph, &self.origin)?;
        let guards = [&self.origin.guard, &self.copy_area.guard];
        let attested = guards.iter().all(|guard| **guard == Guard::Lease);
        let unguarded = |storage: &StorageFile| matches!(storage.guard, Guard::Nobody(_));
        Ok(Survey {
            graph,
            content: origin.content,
            origin: (!unguarded(&self.origin)).then_some(origin.top),
            copy_area: (!unguarded(&self.copy_area)).then_some(copy_area.top),
            attestation: if attested {
                Attestation::Witnessed
            } else {
                Attestation::Unattested
            },
            witness: Box::new(FileWitness {
                storage: [Arc::clone(&self.origin), Arc::clone(&self.copy_area)],
                layers: [origin.witness, copy_area.witness],
            }),
            origin_was_open,
        })
    }
}

struct FileWitness {
    storage: [Arc<StorageFile>; 2],
    layers: [LayerWitness; 2],
}

impl Witness for FileWitness {
    fn check(&self) -> Standing {
        let mut mapping = None;
        for storage in &self.storage {
            match storage.standing() {
                Standing::Good => {}
                Standing::MappingLost(reason) => mapping = Some(reason),
                lost @ Standing::ContentLost(_) => return lost,
            }
        }
        let layers = || self.layers.iter().find_map(|witness| witness.check().err());
        mapping
            .or_else(layers)
            .map_or(Standing::Good, Standing::MappingLost)
    }
}
