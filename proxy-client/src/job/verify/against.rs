//! `verify --against`: reads the source again, and compares.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_export::uri::NbdUri;
use serde::{Serialize, Serializer};
use volmap::range::ByteRange;

use crate::chain::{Chain, find_parents};
use crate::error::{Error, ErrorKind, Result};
use crate::job::lineage::opened;
use crate::job::thread::on_thread;
use crate::nbd::PoolOptions;
use crate::pipeline::FrozenSource;
use crate::transport::nbd::NbdSource;

/// Bytes that are read and compared at a time: a frame.
const STEP: u64 = 1 << 20;

/// Steps that are under way.
const STEPS_AT_ONCE: usize = 16;

/// Bytes that are told to differ or not as one.
const BLOCK: usize = 4096;

/// Differing ranges that are listed one by one: more tell an operator nothing.
const LISTED_MAX: usize = 1000;

/// What came of a comparison.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Comparison {
    /// Whether the source says that it is the very frozen image that the image was made from. Where it is not, it may differ because
    /// it was written to.
    pub same_frozen_image: bool,
    /// Bytes that were compared.
    pub bytes_compared: u64,
    /// Bytes that the image does not have, because they could not be read when it was made.
    pub bytes_unreadable: u64,
    /// What is not the same.
    pub differing: Differences,
}

/// Ranges that differ, as blocks of 4 KiB.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Differences {
    /// Bytes in all of them.
    pub bytes: u64,
    /// How many there are.
    pub count: u64,
    /// The first thousand, `[start, end]` in JSON.
    #[serde(serialize_with = "as_pairs")]
    pub listed: Vec<Range<u64>>,
    #[serde(skip)]
    end: Option<u64>,
}

fn as_pairs<S: Serializer>(ranges: &[Range<u64>], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(ranges.iter().map(|range| [range.start, range.end]))
}

impl Differences {
    /// Adds a range behind all others.
    fn add(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        let continues = self.end.replace(range.end) == Some(range.start);
        match self.listed.last_mut() {
            Some(last) if continues && last.end == range.start => last.end = range.end,
            _ if continues => {}
            _ => {
                self.count += 1;
                if self.listed.len() < LISTED_MAX {
                    self.listed.push(range);
                }
            }
        }
    }
}

impl Comparison {
    /// What the command ends with.
    ///
    /// # Errors
    /// [`ErrorKind::SourceDiffers`].
    pub fn verdict(&self) -> Result<()> {
        let differing = &self.differing;
        let Some(first) = differing.listed.first() else {
            return Ok(());
        };
        let frozen = match self.same_frozen_image {
            true => "which is of the same frozen image",
            false => "of which nothing says that it is the frozen image that was backed up",
        };
        let message = format!(
            "{} bytes in {} ranges differ from the source, {frozen}",
            differing.bytes, differing.count
        );
        let error = Error::new(ErrorKind::SourceDiffers, message);
        Err(match ByteRange::from_bounds(first.start, first.end) {
            Some(first) => error.in_range(first),
            None => error,
        })
    }
}

/// Reads all of an export and compares it with what an image, or a chain, has.
///
/// # Errors
/// [`ErrorKind::FrozenImageGone`]: the export is of another frozen image. [`ErrorKind::SourceDiffers`]: it has another size. Those of
/// the image and of the host.
pub async fn compare(
    image: &Path,
    parents: &[PathBuf],
    uri: &NbdUri,
    options: PoolOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Comparison> {
    let (path, parents) = (image.to_owned(), parents.to_vec());
    let chain = on_thread(move || opened(&find_parents(&path, &parents)?)).await?;
    let source = NbdSource::open(uri.clone(), Vec::new(), options).await?;
    let header = chain.header();
    let same_frozen_image = match source.frozen() {
        Some(frozen) if frozen == header.frozen => true,
        Some(frozen) if !header.frozen.is_nil() => {
            let message = format!("the image is of {}, the host has {frozen}", header.frozen);
            return Err(Error::new(ErrorKind::FrozenImageGone, message).of_volume(uri.export.as_str()));
        }
        _ => false,
    };
    let size = header.size;
    if source.size() != size {
        let message = format!("the image has {size} bytes, the source {}", source.size());
        return Err(Error::new(ErrorKind::SourceDiffers, message).of_volume(uri.export.as_str()));
    }
    let mut found = Comparison {
        same_frozen_image,
        bytes_compared: 0,
        bytes_unreadable: 0,
        differing: Differences::default(),
    };
    let steps = (0..size.div_ceil(STEP))
        .filter_map(|step| ByteRange::from_bounds(step * STEP, size.min((step + 1) * STEP)));
    let compared = stream::iter(steps).map(|range| {
        let (source, chain) = (&source, Arc::clone(&chain));
        async move {
            let bytes = source.read(range).await?;
            let (unreadable, differing) = on_thread(move || compare_range(&chain, range, &bytes)).await?;
            Ok::<_, Error>((range, unreadable, differing))
        }
    });
    let mut compared = std::pin::pin!(compared.buffered(STEPS_AT_ONCE));
    while let Some((range, unreadable, differing)) = compared.try_next().await? {
        found.bytes_unreadable += unreadable;
        found.bytes_compared += range.len() - unreadable;
        differing.into_iter().for_each(|range| found.differing.add(range));
        progress(range.end(), size);
    }
    Ok(found)
}

/// Bytes of a range that the image does not have, and the blocks that differ.
fn compare_range(chain: &Chain, range: ByteRange, bytes: &[u8]) -> Result<(u64, Vec<Range<u64>>)> {
    let mut ours = vec![0; bytes.len()];
    chain.fill(range, &mut ours)?;
    let gaps = chain.unreadable_in(range)?;
    let unreadable = gaps.iter().map(|gap| gap.len()).sum();
    let mut differing = Vec::new();
    let mut at = range.start();
    let ends = gaps.iter().map(|gap| (gap.start(), gap.end()));
    for (end, next) in ends.chain([(range.end(), range.end())]) {
        while at < end {
            let block_end = (at - at % BLOCK as u64 + BLOCK as u64).min(end);
            let index = |at: u64| usize::try_from(at - range.start()).expect("a step fits the memory");
            let block = index(at)..index(block_end);
            if ours[block.clone()] != bytes[block] {
                differing.push(at..block_end);
            }
            at = block_end;
        }
        at = next;
    }
    Ok((unreadable, differing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range_and_no_more_than_a_thousand_are_listed() {
        let mut differences = Differences::default();
        for nth in 0..1001_u64 {
            differences.add(nth * 100..nth * 100 + 10);
            differences.add(nth * 100 + 10..nth * 100 + 20);
        }
        assert_eq!((differences.bytes, differences.count), (20_020, 1001));
        assert_eq!(differences.listed.len(), 1000);
        assert_eq!(differences.listed[999], 99_900..99_920);
    }
}
