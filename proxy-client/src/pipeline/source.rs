//! What the pipeline needs of a frozen image that a host publishes.

use std::future::{Future, ready};

use bytes::Bytes;
use volmap::identity::Identity;
use volmap::range::ByteRange;

use super::limits::EXTENTS_HELD;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::mapped::{MappedExtent, join};
use crate::transport::direct::Geometry;

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

    /// The sizes and block sizes that the host tells of a disk: none where it tells nothing, several only where it contradicts itself.
    fn told_of(&self, _disk: &Identity) -> impl Future<Output = Vec<Geometry>> + Send {
        ready(Vec::new())
    }
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
        for extent in ask(asked).await? {
            if !extents.last_mut().is_some_and(|last| join(last, &extent)) {
                extents.push(extent);
            }
        }
        if extents.len() > EXTENTS_HELD {
            let message = "the host's map is cut into more extents than a volume can have a use for";
            return Err(Error::new(ErrorKind::HostMisbehaved, message).in_range(range));
        }
        rest = ByteRange::from_bounds(extents.last().map_or(asked.end(), |e| e.range.end()), range.end());
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use volmap::generation::Generation;
    use volmap::map::Content;

    use super::*;

    /// Generations that change from byte to byte.
    async fn dust(range: ByteRange) -> Result<Vec<MappedExtent>> {
        let replied = range.start()..range.end().min(range.start() + 10_000);
        let extent = |at| MappedExtent {
            range: ByteRange::new(at, 1).unwrap(),
            content: Content::Data,
            generation: Generation::from_wire(at),
            place: None,
        };
        Ok(replied.map(extent).collect())
    }

    #[tokio::test]
    async fn a_map_of_dust_does_not_fill_the_memory() {
        let held = EXTENTS_HELD as u64;
        let largest = ByteRange::new(0, held).unwrap();
        assert_eq!(whole(largest, dust).await.unwrap().len(), EXTENTS_HELD);
        for len in [held + 1, 1 << 50] {
            let error = whole(ByteRange::new(0, len).unwrap(), dust).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostMisbehaved);
        }
    }
}
