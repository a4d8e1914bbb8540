//! The content of a frozen image whose bytes lie still, cut where they cease to have a location.

use super::StatusExtent;
use crate::generation::Generation;
use crate::map::{Content, ContentMap, Extent, Runs};
use crate::range::ByteRange;
use crate::store::{Place, Reach, StoreGraph, StoreId};

/// What a stretch holds, and whether all of it has a location or none of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    content: Content,
    located: bool,
}

/// What a volume holds, and what of it has a location: its offsets in its uppermost store.
#[derive(Debug)]
pub(super) struct Pieces {
    top: StoreId,
    pieces: Runs<Piece>,
}

impl Pieces {
    /// The content map, cut where data begins or ceases to have a location on a disk; not cut, if nothing may be `direct`.
    pub(super) fn of(graph: &StoreGraph, top: StoreId, content: &ContentMap, direct: bool) -> Self {
        Self::cut(graph, top, content.extents(), direct)
    }

    /// The same content in other stores.
    pub(super) fn on(&self, graph: &StoreGraph, top: StoreId) -> Self {
        let contents = self.pieces.all().map(|(range, piece)| Extent {
            range,
            content: piece.content,
        });
        Self::cut(graph, top, contents, true)
    }

    /// Whether any of it has a location.
    pub(super) fn are_located(&self) -> bool {
        self.pieces.all().any(|(_, piece)| piece.located)
    }

    fn cut(graph: &StoreGraph, top: StoreId, contents: impl Iterator<Item = Extent>, direct: bool) -> Self {
        let mut pieces = Runs::default();
        let reach = Reach::of(graph);
        for Extent { range, content } in contents {
            let mut push = |end, located| pieces.push(end, Piece { content, located });
            if content != Content::Data || !direct {
                push(range.end(), false);
                continue;
            }
            let mut at = range.start();
            while at < range.end() {
                let place = Place {
                    store: top,
                    offset: at,
                };
                let (located, len) = reach.at(place, range.end() - at);
                at += len;
                push(at, located);
            }
        }
        pieces.shrink();
        Self { top, pieces }
    }

    /// Content and places of `range` under the generation that stands: at least one extent, and at most `limit`.
    pub(super) fn status(&self, range: ByteRange, generation: Generation, limit: usize) -> Vec<StatusExtent> {
        let answer = self.pieces.within(range).map(|(range, piece)| {
            let place = (piece.located && generation.is_direct()).then_some(Place {
                store: self.top,
                offset: range.start(),
            });
            let zero = piece.content != Content::Data;
            StatusExtent {
                range,
                content: piece.content,
                generation: if place.is_some() || zero {
                    generation
                } else {
                    Generation::NEVER_DIRECT
                },
                place,
            }
        });
        answer.take(limit.max(1)).collect()
    }

    /// Content of `range`: at least one extent, and at most `limit`.
    pub(super) fn content(&self, range: ByteRange, limit: usize) -> Vec<Extent> {
        let answer = self.pieces.within(range).map(|(range, piece)| Extent {
            range,
            content: piece.content,
        });
        answer.take(limit.max(1)).collect()
    }
}
