//! What exports of live bytes share: one context, and nothing known to be zero.

use volmap::range::ByteRange;

use super::model::{BASE_ALLOCATION, BlockStatus, Context, ContextIndex, ContextStatus};
use super::pieces::Pieces;
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
