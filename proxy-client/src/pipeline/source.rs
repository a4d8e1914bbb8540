//! What the pipeline needs of a frozen image that a host publishes.

use std::future::Future;

use bytes::Bytes;
use volmap::range::ByteRange;

use crate::error::Result;
use crate::plan::mapped::MappedExtent;

/// A frozen image behind a host. The disk number of a place is the position in the job's list of LUNs.
///
/// Errors of the kind `FrozenImageGone` end the job (law P5); the implementation sees to it that answers never come from
/// another frozen image.
pub trait FrozenSource: Send + Sync {
    /// Size of the volume in bytes.
    fn size(&self) -> u64;

    /// Mapping and generation together, from one reply (law P1): from the start of `range`, as far as the reply goes.
    fn map(&self, range: ByteRange) -> impl Future<Output = Result<Vec<MappedExtent>>> + Send;

    /// Generations alone (law P3), asked of the host now: from the start of `range`, as far as the reply goes. Content and place
    /// of the answer mean nothing.
    fn generations(&self, range: ByteRange) -> impl Future<Output = Result<Vec<MappedExtent>>> + Send;

    /// Bytes through the host.
    fn read(&self, range: ByteRange) -> impl Future<Output = Result<Bytes>> + Send;
}

/// The mapping of the whole of `range`, from as many replies as it takes.
pub async fn map_whole<S: FrozenSource>(source: &S, range: ByteRange) -> Result<Vec<MappedExtent>> {
    whole(range, |rest| source.map(rest)).await
}

/// The generations of the whole of `range`, from as many replies as it takes.
pub async fn generations_whole<S: FrozenSource>(source: &S, range: ByteRange) -> Result<Vec<MappedExtent>> {
    whole(range, |rest| source.generations(rest)).await
}

async fn whole<F>(range: ByteRange, ask: impl Fn(ByteRange) -> F) -> Result<Vec<MappedExtent>>
where
    F: Future<Output = Result<Vec<MappedExtent>>>,
{
    let mut extents: Vec<MappedExtent> = Vec::new();
    let mut rest = Some(range);
    while let Some(asked) = rest {
        // Every reply covers at least one byte (plan::mapped::MappingError::Empty), so this ends.
        extents.extend(ask(asked).await?);
        rest = ByteRange::from_bounds(extents.last().map_or(asked.end(), |e| e.range.end()), range.end());
    }
    Ok(extents)
}
