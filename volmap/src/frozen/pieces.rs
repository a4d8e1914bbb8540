//! The content of a frozen image whose bytes lie still, cut where they cease to have a location.

use crate::map::{Content, ContentMap};
use crate::range::ByteRange;
use crate::store::{Place, Reach, StoreGraph, StoreId};

/// A stretch of one content, all of it with a location or none of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) range: ByteRange,
    pub(super) content: Content,
    pub(super) located: bool,
}

/// The content map, cut where data begins or ceases to have a location on a disk.
pub(super) fn pieces(graph: &StoreGraph, top: StoreId, content: &ContentMap, direct: bool) -> Vec<Piece> {
    let reach = Reach::of(graph);
    let mut pieces: Vec<Piece> = Vec::new();
    for extent in content.extents() {
        if extent.content != Content::Data || !direct {
            pieces.push(Piece {
                range: extent.range,
                content: extent.content,
                located: false,
            });
            continue;
        }
        let mut at = extent.range.start();
        while at < extent.range.end() {
            let place = Place {
                store: top,
                offset: at,
            };
            let (located, len) = reach.at(place, extent.range.end() - at);
            let end = at + len;
            match pieces.last_mut() {
                Some(last)
                    if last.content == Content::Data && last.located == located && last.range.end() == at =>
                {
                    last.range = ByteRange::from_bounds(last.range.start(), end).unwrap_or(last.range);
                }
                _ => pieces.extend(ByteRange::from_bounds(at, end).map(|range| Piece {
                    range,
                    content: Content::Data,
                    located,
                })),
            }
            at = end;
        }
    }
    pieces
}
