//! What frozen images of models have in common, and how any of them is published.

use std::sync::Arc;
use std::time::SystemTime;

use nbd_export::export::FrozenExport;
use uuid::Uuid;
use volmap::frozen::{Attestation, Description, Stability, StatusExtent, Strength};
use volmap::generation::Generation;
use volmap::map::Content;
use volmap::range::ByteRange;
use volmap::store::Place;

use crate::wire::Published;
use crate::world::Frozen;

/// The real export of a frozen image.
pub(crate) fn publish(frozen: &Frozen) -> Published {
    Published {
        export: Arc::new(FrozenExport::new(Arc::clone(&frozen.image))),
        frozen: frozen.image.description().uuid,
    }
}

/// What a model says of itself.
pub(crate) fn description(method: &'static str, stability: Stability, number: u64) -> Description {
    Description {
        uuid: Uuid::from_u128(u128::from(number) + 1),
        method,
        strength: Strength::CrashConsistent,
        stability,
        attestation: Attestation::Witnessed,
        frozen_at: SystemTime::UNIX_EPOCH,
    }
}

/// Answers of chunks, clipped to a range; at most `limit`.
pub(crate) fn answer(
    range: ByteRange,
    limit: usize,
    chunk: u64,
    told: impl Fn(u64) -> (Generation, Option<Place>),
) -> Vec<StatusExtent> {
    let chunks = range.start() / chunk..range.end().div_ceil(chunk);
    let extents = chunks.filter_map(|index| {
        let range = ByteRange::new(index * chunk, chunk)?.intersection(range)?;
        let (generation, place) = told(index);
        Some(StatusExtent {
            range,
            content: Content::Data,
            generation: if place.is_some() {
                generation
            } else {
                Generation::NEVER_DIRECT
            },
            place: place.map(|place| Place {
                offset: place.offset + range.start() % chunk,
                ..place
            }),
        })
    });
    extents.take(limit.max(1)).collect()
}

/// Cuts a read along chunks: which one, from where in it, and the memory for it.
pub(crate) fn each_chunk(chunk: u64, offset: u64, buf: &mut [u8], mut each: impl FnMut(u64, u64, &mut [u8])) {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let within = at % chunk;
        let len = rest.len().min((chunk - within) as usize);
        let (part, behind) = rest.split_at_mut(len);
        each(at / chunk, within, part);
        at += len as u64;
        rest = behind;
    }
}
