//! Sources that can be read anywhere, and know their holes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use volmap::range::ByteRange;

use super::limits::{MAP_WINDOW, ZERO_PIECE};
use super::reader::{Content, Piece, Reader};
use crate::error::Result;

/// A run of a source that is data, or zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) length: u64,
    pub(crate) is_zero: bool,
}

/// A source that can be read at any place.
pub(crate) trait RandomAccess: Send + Sync + 'static {
    /// Its size.
    fn size(&self) -> u64;

    /// What every read is a multiple of, the last one apart: a power of two.
    fn granule(&self) -> u64;

    /// Longest read.
    fn longest(&self) -> u64;

    /// What the source says from the start of `range` on: at least one run, and not always all of it. A source that cannot tell is
    /// all data.
    fn runs(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Run>>>;

    /// The bytes of a range: all of them.
    fn read(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Bytes>>;

    /// After the last piece: whether the source still has its size.
    fn check_end(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}

/// Walks the map of a source, and gives its pieces.
pub(crate) struct MappedReader<S> {
    source: Arc<S>,
    /// What is still to be given, in order.
    todo: VecDeque<ByteRange>,
    /// The map, from the start of what is to be given.
    runs: VecDeque<Run>,
    /// Longest piece of data: a multiple of the granule.
    step: u64,
}

impl<S: RandomAccess> MappedReader<S> {
    /// The pieces of `source`, of at most `step` bytes where they are data.
    pub(crate) fn new(source: S, step: u64) -> Self {
        let granule = source.granule();
        let step = step.min(source.longest());
        Self {
            todo: ByteRange::new(0, source.size()).into_iter().collect(),
            runs: VecDeque::new(),
            step: (step - step % granule).max(granule),
            source: Arc::new(source),
        }
    }

    async fn next_piece(&mut self) -> Result<Option<Piece>> {
        let Some(todo) = self.todo.front().copied() else {
            self.source.check_end().await?;
            return Ok(None);
        };
        while self.runs.is_empty() {
            let window = ByteRange::new(todo.start(), todo.len().min(MAP_WINDOW)).unwrap_or(todo);
            self.runs = self.source.runs(window).await?.into();
        }
        let (length, is_zero) = self.first_length(todo);
        let range = ByteRange::new(todo.start(), length).unwrap_or(todo);
        self.advance(range);
        let content = if is_zero {
            Content::Zero
        } else {
            Content::Later(Arc::clone(&self.source).read(range))
        };
        Ok(Some(Piece { range, content }))
    }

    /// Length and kind of the first piece of `todo`. Zeroes are rounded inward, so that data are rounded outward.
    fn first_length(&self, todo: ByteRange) -> (u64, bool) {
        let granule = self.source.granule();
        let (at, end) = (todo.start(), todo.end());
        let run_of = |zero: bool| -> u64 {
            let runs = self.runs.iter().take_while(|run| run.is_zero == zero);
            runs.fold(at, |end, run| end.saturating_add(run.length)).min(end)
        };
        let zeroes = run_of(true);
        let zeroes = if zeroes == end {
            zeroes
        } else {
            zeroes - zeroes % granule
        };
        if zeroes > at {
            return ((zeroes - at).min(ZERO_PIECE), true);
        }
        // Pieces end on multiples of the step, so that requests are whole and few.
        let step_end = (at - at % self.step).saturating_add(self.step).min(end);
        let data = run_of(false).max(at + 1);
        let data = data
            .checked_next_multiple_of(granule)
            .unwrap_or(end)
            .min(step_end);
        (data - at, false)
    }

    fn advance(&mut self, range: ByteRange) {
        let mut left = range.len();
        while left > 0 {
            // What is read beyond the map of this window was rounded outward, and is not asked for again.
            let Some(run) = self.runs.front_mut() else { break };
            let part = run.length.min(left);
            run.length -= part;
            left -= part;
            if run.length == 0 {
                self.runs.pop_front();
            }
        }
        if let Some(todo) = self.todo.front_mut() {
            match ByteRange::from_bounds(range.end(), todo.end()) {
                Some(rest) => *todo = rest,
                None => {
                    self.todo.pop_front();
                    self.runs.clear();
                }
            }
        }
    }
}

impl<S: RandomAccess> Reader for MappedReader<S> {
    fn size(&self) -> Option<u64> {
        Some(self.source.size())
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>>> {
        Box::pin(self.next_piece())
    }

    fn rewind(&mut self, ranges: Vec<ByteRange>) -> bool {
        let (granule, size) = (self.source.granule(), self.source.size());
        let whole = |range: ByteRange| {
            let outward = range.align_outward(granule).unwrap_or(range);
            ByteRange::from_bounds(outward.start(), outward.end().min(size))
        };
        self.todo = ranges.into_iter().filter_map(whole).collect();
        self.runs.clear();
        true
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the volumes of these tests are small"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A source of `runs`, whose map comes in windows of `window` bytes.
    struct Scripted {
        runs: Vec<Run>,
        granule: u64,
        window: u64,
    }

    impl RandomAccess for Scripted {
        fn size(&self) -> u64 {
            self.runs.iter().map(|run| run.length).sum()
        }

        fn granule(&self) -> u64 {
            self.granule
        }

        fn longest(&self) -> u64 {
            1 << 20
        }

        fn runs(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Run>>> {
            let mut found = Vec::new();
            let mut at = 0;
            let asked = ByteRange::new(range.start(), range.len().min(self.window)).unwrap();
            for run in &self.runs {
                let here = ByteRange::new(at, run.length).unwrap();
                at = here.end();
                if let Some(part) = here.intersection(asked) {
                    found.push(Run {
                        length: part.len(),
                        ..*run
                    });
                }
            }
            Box::pin(ready(Ok(found)))
        }

        fn read(self: Arc<Self>, _: ByteRange) -> BoxFuture<'static, Result<Bytes>> {
            Box::pin(ready(Ok(Bytes::new())))
        }
    }

    proptest! {
        #[test]
        fn pieces_tile_the_source_and_what_is_zero_was_said_to_be(
            runs in proptest::collection::vec((1u64..3000, any::<bool>()), 1..20),
            granule in 0u32..10,
            step in 1u64..4000,
            window in 1u64..3000,
        ) {
            let runs: Vec<_> = runs.into_iter().map(|(length, is_zero)| Run { length, is_zero }).collect();
            let granule = 1 << granule;
            let window = window.next_multiple_of(granule);
            let source = Scripted { runs: runs.clone(), granule, window };
            let size = source.size();
            let mut zero = Vec::new();
            runs.iter().for_each(|run| zero.extend(std::iter::repeat_n(run.is_zero, run.length as usize)));
            let mut reader = MappedReader::new(source, step);
            let mut at = 0;
            while let Some(piece) = futures_util::FutureExt::now_or_never(reader.next()).unwrap().unwrap() {
                prop_assert_eq!(piece.range.start(), at);
                prop_assert!(at % granule == 0);
                at = piece.range.end();
                prop_assert!(at % granule == 0 || at == size);
                if matches!(piece.content, Content::Zero) {
                    prop_assert!(zero[piece.range.start() as usize..at as usize].iter().all(|zero| *zero));
                } else {
                    prop_assert!(piece.range.len() <= step.max(granule));
                }
            }
            prop_assert_eq!(at, size);
        }
    }
}
