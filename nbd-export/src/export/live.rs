//! What exports of live bytes share: one context, and nothing known to be zero.

use volmap::map::Extent;
use volmap::range::ByteRange;

use super::model::{BASE_ALLOCATION, BlockStatus, Context, ContextIndex, ContextStatus};
use super::pieces::Pieces;
use super::x_volmap::base_allocation;
use crate::proto::Descriptor;

/// `base:allocation` alone.
pub(super) fn allocation_only() -> Vec<Context> {
    vec![Context {
        name: BASE_ALLOCATION.to_owned(),
        extended: false,
    }]
}

/// "All data": always right, and all that can be said of bytes that are being written to.
pub(super) fn all_data(range: ByteRange, selected: &[ContextIndex]) -> BlockStatus {
    let descriptor = Descriptor {
        length: range.len(),
        status: 0,
    };
    selected
        .iter()
        .map(|context| ContextStatus {
            context: *context,
            descriptors: vec![descriptor],
        })
        .collect()
}

/// One piece of data, filled by `read`.
pub(super) fn one_piece<E>(
    range: ByteRange,
    out: &mut Pieces,
    read: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let len = usize::try_from(range.len()).expect("a request fits into memory");
    read(out.data(range.start(), len))
}

/// `base:allocation` of the extents of a volume.
pub(super) fn allocation(extents: &[Extent], selected: &[ContextIndex]) -> BlockStatus {
    let mut descriptors: Vec<Descriptor> = Vec::with_capacity(extents.len());
    for extent in extents {
        let (length, status) = (extent.range.len(), base_allocation(extent.content));
        match descriptors.last_mut() {
            Some(last) if last.status == status => last.length += length,
            _ => descriptors.push(Descriptor { length, status }),
        }
    }
    selected
        .iter()
        .map(|context| ContextStatus {
            context: *context,
            descriptors: descriptors.clone(),
        })
        .collect()
}

/// Cuts a range at multiples of `step`, and tells which part is the last: what makes that durable covers all before it.
pub(super) fn steps(range: ByteRange, step: u64) -> impl Iterator<Item = (ByteRange, bool)> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let end = (at - at % step).saturating_add(step).min(range.end());
        let part = ByteRange::from_bounds(at, end)?;
        at = end;
        Some((part, end == range.end()))
    })
}
