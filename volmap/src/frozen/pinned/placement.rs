//! Where the bytes of a pinned image lie: one map, under one generation, for as long as its witness stands.

use std::sync::{Arc, OnceLock};

use super::survey::{Survey, Witness};
use crate::frozen::Status;
use crate::frozen::hold::Hold;
use crate::frozen::pieces::Pieces;
use crate::generation::Generation;
use crate::map::Extent;
use crate::range::ByteRange;
use crate::store::StoreGraph;

/// A map and what confirms it.
pub(super) struct Placement {
    graph: Arc<StoreGraph>,
    pieces: Pieces,
    /// [`Generation::NEVER_DIRECT`] for an opaque image.
    generation: Generation,
    witness: Box<dyn Witness>,
    /// Why it is lost, for good: what lies elsewhere, or may have, is another placement.
    lost: OnceLock<String>,
}

/// What a placement is worth when it is asked.
pub(super) enum Standing<'a> {
    /// Its bytes lie where it says.
    Good(Generation),
    /// The layers below were moved, or may have been, and nobody knew before.
    Moved(&'a str),
    /// Nothing holds its own extents where they are any more, and nobody knew before. That is for good.
    Slipped(&'a str),
    /// As was known before.
    Lost,
}

impl Placement {
    /// That of a freeze.
    pub(super) fn first(survey: Survey, generation: Generation) -> Self {
        let pieces = Pieces::of(&survey.graph, survey.top, &survey.content, generation.is_direct());
        Self::new(survey.graph, pieces, generation, survey.witness)
    }

    /// The same content at the places of a later survey. What is data, a zero or a hole was settled by the freeze, and is never asked again.
    pub(super) fn pieces_on(&self, survey: &Survey) -> Pieces {
        self.pieces.on(&survey.graph, survey.top)
    }

    pub(super) fn new(
        graph: StoreGraph,
        pieces: Pieces,
        generation: Generation,
        witness: Box<dyn Witness>,
    ) -> Self {
        Self {
            graph: Arc::new(graph),
            pieces,
            generation,
            witness,
            lost: OnceLock::new(),
        }
    }

    /// Whether it stands: both witnesses are sampled now.
    pub(super) fn check(&self, hold: &dyn Hold) -> Standing<'_> {
        if self.is_lost() {
            return Standing::Lost;
        }
        if !self.generation.is_direct() {
            return Standing::Good(self.generation);
        }
        if let Err(reason) = hold.check_mapping() {
            return self.lose(reason, Standing::Slipped);
        }
        if let Err(reason) = self.witness.check() {
            return self.lose(reason, Standing::Moved);
        }
        // Somebody else may have seen it lost under our look.
        match self.is_lost() {
            true => Standing::Lost,
            false => Standing::Good(self.generation),
        }
    }

    fn lose<'a>(&'a self, reason: String, news: impl FnOnce(&'a str) -> Standing<'a>) -> Standing<'a> {
        let mut is_news = false;
        let reason = self.lost.get_or_init(|| {
            is_news = true;
            reason
        });
        if is_news { news(reason) } else { Standing::Lost }
    }

    /// Whether it is known to be lost. Nothing is asked for that.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    pub(super) fn graph(&self) -> &Arc<StoreGraph> {
        &self.graph
    }

    pub(super) fn status(&self, range: ByteRange, generation: Generation, limit: usize) -> Status {
        Status {
            graph: Arc::clone(&self.graph),
            extents: self.pieces.status(range, generation, limit),
        }
    }

    pub(super) fn content(&self, range: ByteRange, limit: usize) -> Vec<Extent> {
        self.pieces.content(range, limit)
    }
}
