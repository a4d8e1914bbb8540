//! A chain as one volume.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use volmap::range::ByteRange;

use super::cache::Cache;
use super::find::is_parent;
use super::member::Member;
use crate::copy::{RandomAccess, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    End, Header, Holds, ImageError, Kind, LEAF, Lent, OpenGroup, ParentImage, Record, RootOfLeaves, part_of,
};
use crate::unreadable::UnreadableRanges;

/// Runs that are told at a time.
const RUNS_MAX: usize = 1 << 16;

/// Images that continue each other, newest first.
pub(crate) struct Chain {
    members: Vec<Member>,
}

/// A stretch of the volume, and what it holds: never [`Kind::Same`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) range: ByteRange,
    pub(crate) kind: Kind,
}

impl Chain {
    /// Opens images that continue each other, newest first, down to a full one.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`]: they do not.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self> {
        Self::open_with(paths, &Cache::new())
    }

    /// The same with a cache that other chains share.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_with(paths: &[PathBuf], cache: &Arc<Cache>) -> Result<Self> {
        let members = paths
            .iter()
            .map(|path| Member::open(path, cache))
            .collect::<Result<Vec<_>>>()?;
        for pair in members.windows(2) {
            let parent = pair[0].header().parent;
            if !parent.is_some_and(|wanted| is_parent(pair[1].header(), pair[1].end().root, wanted)) {
                let message = format!("it does not continue {}", pair[1].path().display());
                return Err(Error::new(ErrorKind::ImageBad, message).at_path(pair[0].path()));
            }
        }
        match members.last().map(|last| (last, last.header().parent)) {
            Some((_, None)) => Ok(Self { members }),
            Some((last, Some(parent))) => Err(last.bad(ImageError::ParentMissing {
                parent: parent.frozen,
            })),
            None => Err(Error::new(ErrorKind::Usage, "a chain has at least one image")),
        }
    }

    /// The newest image.
    pub(crate) fn header(&self) -> &Header {
        self.members[0].header()
    }

    /// What the newest image says of itself.
    pub(crate) fn end(&self) -> &End {
        self.members[0].end()
    }

    /// Computes every root of the chain from leaf hashes and records, without reading data: what is read after that is checked
    /// against those leaf hashes.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`].
    pub(crate) fn check(&self) -> Result<()> {
        for (depth, member) in self.members.iter().enumerate().rev() {
            let mut root = RootOfLeaves::default();
            let size = member.header().size;
            let mut at = 0;
            while at < size {
                let range = ByteRange::from_bounds(at, size.min(at + (1 << 30))).expect("it is not empty");
                self.each_leaf(depth, range, &mut |leaf| root.push(leaf))?;
                at = range.end();
            }
            if root.finish(size) != member.end().root {
                return Err(member.bad(ImageError::RootDiffers));
            }
        }
        Ok(())
    }

    /// The hashes of the leaves of `range`, as the image at `depth` has them.
    fn each_leaf(&self, depth: usize, range: ByteRange, each: &mut dyn FnMut(&blake3::Hash)) -> Result<()> {
        let member = self.holder(depth, range)?;
        let mut at = range.start();
        while at < range.end() {
            let (group, frame) = member.frame_at(at)?;
            let end = frame.range.end().min(range.end());
            let part = ByteRange::from_bounds(at, end).expect("a frame that holds a byte ends behind it");
            if frame.holds == Holds::Same {
                self.each_leaf(depth + 1, part, each)?;
            } else {
                let skip = (at - frame.range.start()) / LEAF;
                let count = part.len().div_ceil(LEAF);
                let leaves = group.leaves(&frame);
                let own = leaves.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX));
                own.take(usize::try_from(count).unwrap_or(0)).for_each(&mut *each);
            }
            at = end;
        }
        Ok(())
    }

    /// The hashes of the leaves of a range of the newest image.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`], [`ErrorKind::Io`].
    pub(crate) fn leaves(&self, range: ByteRange) -> Result<Vec<blake3::Hash>> {
        let mut leaves = Vec::new();
        self.each_leaf(0, range, &mut |leaf| leaves.push(*leaf))?;
        Ok(leaves)
    }

    /// What the volume holds in `range`, in order, until `each` has enough.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`], [`ErrorKind::Io`].
    pub(crate) fn walk(&self, range: ByteRange, each: &mut dyn FnMut(Part) -> ControlFlow<()>) -> Result<()> {
        self.walk_at(0, range, each).map(drop)
    }

    fn walk_at(
        &self,
        depth: usize,
        range: ByteRange,
        each: &mut dyn FnMut(Part) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let member = self.holder(depth, range)?;
        let mut at = range.start();
        while let Some(rest) = ByteRange::from_bounds(at, range.end()) {
            let group = member.group_at(at)?;
            let records = group.records();
            let first = records.partition_point(|record| record.range.end() <= at);
            for record in &records[first..] {
                let Some(part) = record.range.intersection(rest) else {
                    break;
                };
                let kind = record.kind;
                let flow = match kind {
                    Kind::Same => self.walk_same(depth, &group, part, each)?,
                    _ => each(Part { range: part, kind }),
                };
                if flow.is_break() {
                    return Ok(flow);
                }
                at = part.end();
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What the parent of the image at `depth` holds. Blocks of a leaf that changed are data, whatever they were: the hash of the leaf alone
    /// says that they still are that, and it is looked at when they are read.
    fn walk_same(
        &self,
        depth: usize,
        group: &OpenGroup,
        range: ByteRange,
        each: &mut dyn FnMut(Part) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        for frame in group.frames() {
            let Some(range) = frame.range.intersection(range) else {
                continue;
            };
            let kind = Kind::Data;
            let flow = match frame.holds {
                Holds::Same => self.walk_at(depth + 1, range, each)?,
                Holds::Data | Holds::Zeroes => each(Part { range, kind }),
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The image at `depth`, which has to hold a range.
    fn holder(&self, depth: usize, range: ByteRange) -> Result<&Member> {
        let member = self.members.get(depth).filter(|member| member.holds(range));
        member.ok_or_else(|| self.members[0].bad(ImageError::ParentUnreadable { range }))
    }

    /// Ranges of the volume that could not be read when the images were made.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`], [`ErrorKind::Io`].
    pub(crate) fn unreadable_in(&self, range: ByteRange) -> Result<Vec<ByteRange>> {
        let mut found = Vec::new();
        self.walk(range, &mut |part| {
            found.extend(Some(part.range).filter(|_| part.kind == Kind::Unreadable));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// All of them.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`], [`ErrorKind::Io`].
    pub(crate) fn unreadable(&self) -> Result<UnreadableRanges> {
        let mut ranges = UnreadableRanges::default();
        if let Some(all) = ByteRange::new(0, self.header().size) {
            self.walk(all, &mut |part| {
                if part.kind == Kind::Unreadable {
                    ranges.add(part.range);
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(ranges)
    }

    /// Fills `bytes` with those of a range, as the image at `depth` has them.
    fn fill_at(&self, depth: usize, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        let member = self.holder(depth, range)?;
        let mut at = range.start();
        while at < range.end() {
            let (_, frame) = member.frame_at(at)?;
            let end = frame.range.end().min(range.end());
            let run = ByteRange::from_bounds(at, end).expect("a frame that holds a byte ends behind it");
            let part = &mut bytes[part_of(range, run)];
            match frame.holds {
                Holds::Zeroes => part.fill(0),
                Holds::Data => self.fill_leaves(depth, run, part)?,
                Holds::Same => self.fill_at(depth + 1, run, part)?,
            }
            at = end;
        }
        Ok(())
    }

    /// The same of a range in a data frame, leaf by leaf where some of it is the parent's: a leaf is checked as a whole.
    fn fill_leaves(&self, depth: usize, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        let member = self.holder(depth, range)?;
        let (group, frame) = member.frame_at(range.start())?;
        let stored = member.plain(&group, &frame)?;
        let mut at = range.start();
        while let Some(rest) = ByteRange::from_bounds(at, range.end()) {
            let start = at - at % LEAF;
            let end = frame.range.end().min(start + LEAF);
            let leaf = ByteRange::from_bounds(start, end).expect("a leaf is not empty");
            let part = leaf.intersection(rest).expect("it holds a byte of the range");
            let own = &stored[part_of(frame.range, leaf)];
            let wanted = &mut bytes[part_of(range, part)];
            let same = group.same_in(leaf);
            if same.is_empty() {
                wanted.copy_from_slice(&own[part_of(leaf, part)]);
            } else {
                let mut whole = own.to_vec();
                for same in same {
                    self.lend_at(depth + 1, same, &mut whole[part_of(leaf, same)])?;
                }
                group
                    .check_leaf(&frame, leaf, &whole)
                    .map_err(|e| member.bad(e))?;
                wanted.copy_from_slice(&whole[part_of(leaf, part)]);
            }
            at = part.end();
        }
        Ok(())
    }

    /// Fills `bytes` with those of a range, as the image at `depth` has them, for a leaf of a newer one: that is checked by its own hash.
    fn lend_at(&self, depth: usize, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        let member = self.holder(depth, range)?;
        let mut at = range.start();
        while let Some(rest) = ByteRange::from_bounds(at, range.end()) {
            let (group, frame) = member.frame_at(at)?;
            let part = frame.range.intersection(rest).expect("it holds the first byte");
            let unreadable = |record: &&Record| record.kind == Kind::Unreadable;
            if let Some(record) = group.records_in(part).iter().find(unreadable) {
                return Err(member.bad(ImageError::ParentUnreadable { range: record.range }));
            }
            let same = group.same_in(part);
            let is_older = same.iter().map(|same| same.len()).sum::<u64>() == part.len();
            let own = &mut bytes[part_of(range, part)];
            match frame.holds {
                // In a long chain most of what is asked for is, and a frame is a megabyte to be decoded.
                _ if is_older => {}
                Holds::Data => {
                    own.copy_from_slice(&member.plain(&group, &frame)?[part_of(frame.range, part)]);
                }
                Holds::Zeroes | Holds::Same => own.fill(0),
            }
            for same in same {
                self.lend_at(depth + 1, same, &mut bytes[part_of(range, same)])?;
            }
            at = part.end();
        }
        Ok(())
    }

    /// Fills `bytes` with those of a range of the volume, every one of them checked. Zeroes stand in for what could not be read when
    /// the images were made.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`], [`ErrorKind::Io`].
    pub(crate) fn fill(&self, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        self.fill_at(0, range, bytes)
    }
}

/// A chain, for the decoder of an image that continues it.
pub(crate) struct ParentChain(pub(crate) Arc<Chain>);

impl ParentImage for ParentChain {
    fn lend(&mut self, range: ByteRange, bytes: &mut [u8]) -> Lent {
        match self.0.lend_at(0, range, bytes) {
            Ok(()) => Lent::Bytes,
            Err(error) => {
                tracing::error!(%error, "the parent of the image is no good");
                Lent::Nothing
            }
        }
    }

    fn leaves(&mut self, range: ByteRange) -> Option<Vec<blake3::Hash>> {
        match self.0.leaves(range) {
            Ok(leaves) => Some(leaves),
            Err(error) => {
                tracing::error!(%error, "the parent of the image is no good");
                None
            }
        }
    }
}

/// The volume of a chain, to be copied from.
pub(crate) struct ChainSource(pub(crate) Arc<Chain>);

impl RandomAccess for ChainSource {
    fn size(&self) -> u64 {
        self.0.header().size
    }

    fn granule(&self) -> u64 {
        1
    }

    fn longest(&self) -> u64 {
        1 << 20
    }

    fn runs(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Run>>> {
        let chain = Arc::clone(&self.0);
        Box::pin(async move {
            on_a_thread(move || {
                let mut runs = Vec::new();
                chain.walk(range, &mut |part| {
                    let (length, is_zero) = (part.range.len(), part.kind != Kind::Data);
                    match runs.last_mut() {
                        // Blocks of two images in turn are one run.
                        Some(Run {
                            length: last,
                            is_zero: same,
                        }) if *same == is_zero => *last += length,
                        _ => runs.push(Run { length, is_zero }),
                    }
                    match runs.len() < RUNS_MAX {
                        true => ControlFlow::Continue(()),
                        false => ControlFlow::Break(()),
                    }
                })?;
                Ok(runs)
            })
            .await
        })
    }

    fn read(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Bytes>> {
        let chain = Arc::clone(&self.0);
        Box::pin(on_a_thread(move || {
            let length = usize::try_from(range.len()).expect("what is read fits the memory");
            let mut bytes = BytesMut::zeroed(length);
            chain.fill(range, &mut bytes)?;
            Ok(bytes.freeze())
        }))
    }
}

/// Reads of files and their decompression keep a thread busy.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, "a thread that read images broke down").caused_by(error))?
}
