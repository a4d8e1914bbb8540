//! The bytes of a batch, put together of what the reads brought. A read that is just what a segment needs becomes its memory.

use std::ops::Deref;

use bytes::Bytes;
use volmap::range::ByteRange;

use super::{memory_len, parts};
use crate::plan::batch::Stretch;
use crate::plan::mapped::MappedExtent;
use crate::transport::direct::LunBytes;

/// Plain bytes of a volume, in the memory that they were read to.
#[derive(Debug)]
pub enum Plain {
    /// Of a LUN.
    Lun(LunBytes),
    /// Of the host.
    Host(Bytes),
    /// Put together.
    Joined(Vec<u8>),
}

impl Deref for Plain {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lun(read) => read.bytes(),
            Self::Host(bytes) => bytes,
            Self::Joined(bytes) => bytes,
        }
    }
}

/// A run of leaves.
#[derive(Debug)]
pub struct FetchedStretch {
    /// Whole leaves of the volume.
    pub range: ByteRange,
    /// The bytes of the range; `None`: all of it is zero.
    pub bytes: Option<Plain>,
}

/// The memory of a batch: segments in volume order, those with data of bounded length.
pub(super) struct Assembly {
    segments: Vec<FetchedStretch>,
}

impl Assembly {
    /// Nothing but zeroes yet.
    pub(super) fn new(stretches: &[Stretch], longest: u64) -> Self {
        let segments = stretches.iter().flat_map(|stretch| {
            let longest = if stretch.zero { u64::MAX } else { longest };
            parts(stretch.range, longest)
        });
        Self {
            segments: segments
                .map(|range| FetchedStretch { range, bytes: None })
                .collect(),
        }
    }

    fn index_of(&self, byte: u64) -> usize {
        self.segments.partition_point(|s| s.range.end() <= byte)
    }

    /// Cuts a range along the segments.
    pub(super) fn cut(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let first = self.index_of(range.start());
        self.segments[first..]
            .iter()
            .map_while(move |segment| segment.range.intersection(range))
    }

    /// Cuts an extent along the segments.
    pub(super) fn cut_extent(&self, extent: MappedExtent) -> impl Iterator<Item = MappedExtent> {
        self.cut(extent.range)
            .filter_map(move |part| extent.clipped(part))
    }

    /// Takes the bytes of a range that lies in one segment.
    pub(super) fn take(&mut self, range: ByteRange, plain: Plain) {
        let index = self.index_of(range.start());
        if self.segments[index].range == range {
            self.segments[index].bytes = Some(plain);
        } else {
            self.copy(range, &plain);
        }
    }

    /// Copies the bytes of a range that lies in one segment.
    pub(super) fn copy(&mut self, range: ByteRange, bytes: &[u8]) {
        self.bytes_mut(range).copy_from_slice(bytes);
    }

    /// Forgets the bytes of a range.
    pub(super) fn clear(&mut self, range: ByteRange) {
        let parts: Vec<ByteRange> = self.cut(range).collect();
        for part in parts {
            let index = self.index_of(part.start());
            let segment = &mut self.segments[index];
            if segment.range == part {
                segment.bytes = None;
            } else if segment.bytes.is_some() {
                self.bytes_mut(part).fill(0);
            }
        }
    }

    /// The bytes of a range that lies in one segment; `None`: zeroes.
    pub(super) fn bytes(&self, range: ByteRange) -> Option<&[u8]> {
        let segment = &self.segments[self.index_of(range.start())];
        let skip = memory_len(range.start() - segment.range.start());
        let bytes = segment.bytes.as_deref()?;
        Some(&bytes[skip..][..memory_len(range.len())])
    }

    fn bytes_mut(&mut self, range: ByteRange) -> &mut [u8] {
        let index = self.index_of(range.start());
        let segment = &mut self.segments[index];
        let length = memory_len(segment.range.len());
        let skip = memory_len(range.start() - segment.range.start());
        let joined = match segment.bytes.take() {
            Some(Plain::Joined(joined)) => joined,
            Some(read) => read.to_vec(),
            None => vec![0; length],
        };
        let Plain::Joined(joined) = segment.bytes.insert(Plain::Joined(joined)) else {
            unreachable!("it was put there just now");
        };
        &mut joined[skip..][..memory_len(range.len())]
    }

    /// The segments, in volume order.
    pub(super) fn into_stretches(self) -> Vec<FetchedStretch> {
        self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    fn assembly() -> Assembly {
        let stretches = [(0, 100, false), (100, 5000, true), (5000, 5030, false)];
        let stretches = stretches.map(|(start, end, zero)| Stretch {
            range: range(start, end),
            zero,
        });
        Assembly::new(&stretches, 40)
    }

    fn bytes(from: u8, length: usize) -> Plain {
        Plain::Host(Bytes::from(vec![from; length]))
    }

    #[test]
    fn only_data_is_cut_and_reads_that_fit_are_kept_as_they_are() {
        let mut assembly = assembly();
        let cut: Vec<_> = assembly.cut(range(10, 5010)).collect();
        assert_eq!(
            cut,
            [
                range(10, 40),
                range(40, 80),
                range(80, 100),
                range(100, 5000),
                range(5000, 5010)
            ]
        );
        let whole = bytes(7, 40);
        let address = whole.as_ptr();
        assembly.take(range(40, 80), whole);
        assembly.take(range(90, 100), bytes(8, 10));
        assert_eq!(assembly.bytes(range(41, 42)).unwrap(), [7]);
        assert_eq!(assembly.bytes(range(89, 91)).unwrap(), [0, 8]);
        assert_eq!(assembly.bytes(range(0, 40)), None);
        let stretches = assembly.into_stretches();
        assert_eq!(stretches[1].bytes.as_ref().unwrap().as_ptr(), address);
        assert!(matches!(stretches[2].bytes, Some(Plain::Joined(_))));
    }

    #[test]
    fn what_is_cleared_leaves_no_trace() {
        let mut assembly = assembly();
        assembly.take(range(0, 40), bytes(7, 40));
        assembly.take(range(40, 80), bytes(7, 40));
        assembly.clear(range(30, 80));
        assert_eq!(
            assembly.bytes(range(29, 40)).unwrap(),
            [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(assembly.bytes(range(40, 80)), None);
        assembly.take(range(50, 60), bytes(9, 10));
        assert_eq!(assembly.bytes(range(49, 51)).unwrap(), [0, 9]);
    }
}
