//! Where a volume lies, as it was found when somebody looked.

use std::fs::File;
use std::io;

use crate::layers::{LayerWitness, Mapping, VolumeKind};
use crate::map::ContentMap;
use crate::store::{Below, StoreGraph, StoreId};

/// What notices that what a survey found is not as it was, or was not all the time since.
pub(in crate::frozen) trait Witness: Send + Sync {
    /// Of all layers.
    fn check(&self) -> Result<(), String>;
}

impl Witness for LayerWitness {
    fn check(&self) -> Result<(), String> {
        self.check()
    }
}

/// Looks again where the volume behind an open file lies. It may take long, and wait for devices.
pub(in crate::frozen) type SurveyAgain = Box<dyn Fn(&File) -> io::Result<Survey> + Send + Sync>;

/// See the module. What happens from before the look on is noticed by its witness.
pub(in crate::frozen) struct Survey {
    pub(in crate::frozen) graph: StoreGraph,
    pub(super) top: StoreId,
    pub(super) content: ContentMap,
    pub(super) size: u64,
    pub(super) kind: VolumeKind,
    pub(super) witness: Box<dyn Witness>,
}

impl Survey {
    /// A volume that was mapped into `graph`.
    pub(in crate::frozen) fn of(graph: StoreGraph, mapping: Mapping) -> Self {
        Self {
            graph,
            top: mapping.top,
            content: mapping.content,
            size: mapping.size,
            kind: mapping.kind,
            witness: Box::new(mapping.witness),
        }
    }

    /// Why nothing of it reaches a disk, for the operator.
    pub(super) fn why_opaque(&self) -> String {
        let mut reasons = self.graph.stores().iter().filter_map(|store| match &store.below {
            Below::Opaque(reason) => Some(format!("{}: {reason}", store.label)),
            _ => None,
        });
        reasons
            .next_back()
            .unwrap_or_else(|| "it lies on no disk that is known".to_owned())
    }
}
