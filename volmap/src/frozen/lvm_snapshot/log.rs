//! The map: which chunks of the origin were copied, as far as the log was read.

use std::collections::BTreeMap;

use super::exception_store::{Geometry, StoreError};
use crate::generation::Generation;
use crate::range::ByteRange;

/// A chunk that was copied.
#[derive(Clone, Copy, Debug)]
struct Copied {
    /// Where its old data lies in the store, in bytes.
    offset: u64,
    generation: Generation,
}

/// Where a piece of the frozen image lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// In the origin, at its own offset.
    Origin,
    /// In the store, at this offset.
    Store(u64),
}

/// The log as it was read so far, and the generations of what it says.
#[derive(Debug)]
pub(super) struct Log {
    geometry: Geometry,
    /// Size of the volume in bytes.
    size: u64,
    /// By chunk of the origin.
    copied: BTreeMap<u64, Copied>,
    /// Of everything that was not copied.
    rest: Generation,
    /// Whether something was found in it that cannot be.
    broken: bool,
}

impl Log {
    /// A log of which nothing was read.
    pub(super) fn new(geometry: Geometry, size: u64, generation: Generation) -> Self {
        Self {
            geometry,
            size,
            copied: BTreeMap::new(),
            rest: generation,
            broken: false,
        }
    }

    /// Whether it is not to be used any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Entries that were read: what a generation stands for.
    pub(super) fn len(&self) -> u64 {
        self.copied.len() as u64
    }

    /// Takes the new tail of the log: these chunks have moved, under this generation, and nothing else has.
    ///
    /// # Errors
    /// [`StoreError::Entry`]. The log is not to be used any more.
    pub(super) fn append(&mut self, chunks: &[u64], generation: Generation) -> Result<(), StoreError> {
        let end = self.size.div_ceil(self.geometry.chunk());
        for &chunk in chunks {
            let offset = self.geometry.data_chunk(self.len()) * self.geometry.chunk();
            let copied = Copied { offset, generation };
            if chunk >= end || self.copied.insert(chunk, copied).is_some() {
                self.broken = true;
                return Err(StoreError::Entry);
            }
        }
        Ok(())
    }

    /// Gives everything another generation: the layers below have changed, or may have.
    pub(super) fn renew(&mut self, generation: Generation) {
        self.rest = generation;
        for copied in self.copied.values_mut() {
            copied.generation = generation;
        }
    }

    /// Cuts `range` at every chunk that was copied, in order.
    pub(super) fn pieces(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, Source, Generation)> {
        let chunk = self.geometry.chunk();
        let mut copied = self
            .copied
            .range(range.start() / chunk..range.end().div_ceil(chunk))
            .peekable();
        let mut at = range.start();
        std::iter::from_fn(move || {
            let next = copied.peek().map(|(index, copied)| (*index * chunk, **copied));
            let (end, source, generation) = match next {
                Some((start, Copied { offset, generation })) if start <= at => {
                    copied.next();
                    (start + chunk, Source::Store(offset + (at - start)), generation)
                }
                Some((start, _)) => (start, Source::Origin, self.rest),
                None => (range.end(), Source::Origin, self.rest),
            };
            let piece = ByteRange::from_bounds(at, end.min(range.end()))?;
            at = piece.end();
            Some((piece, source, generation))
        })
    }
}
