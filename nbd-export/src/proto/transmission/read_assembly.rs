//! The chunks of one READ, put together.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::proto::error::PeerMisbehaved;
use crate::proto::limits::MAX_CONTENT_CHUNKS;

/// The bytes of a READ: all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadReply {
    /// The bytes, zeroes where the holes are.
    pub data: Bytes,
    /// Where the server sent holes instead of data, as offsets of the export, in order and not touching.
    pub holes: Vec<Range<u64>>,
}

/// The chunks of one READ so far.
#[derive(Debug)]
pub(super) struct ReadAssembly {
    offset: u64,
    length: u32,
    dont_fragment: bool,
    chunks: usize,
    covered: Ranges,
    holes: Ranges,
    buffer: Buffer,
}

/// A reply in one chunk, which is the usual one, is given on without being copied.
#[derive(Debug)]
enum Buffer {
    Nothing,
    Whole(Bytes),
    Pieces(BytesMut),
}

impl ReadAssembly {
    pub(super) fn new(offset: u64, length: u32, dont_fragment: bool) -> Self {
        Self {
            offset,
            length,
            dont_fragment,
            chunks: 0,
            covered: Ranges::default(),
            holes: Ranges::default(),
            buffer: Buffer::Nothing,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn length(&self) -> u32 {
        self.length
    }

    pub(super) fn take_data(&mut self, offset: u64, data: Bytes) -> Result<(), PeerMisbehaved> {
        let at = self.cover(offset, data.len() as u64)?;
        if data.len() == self.length as usize {
            self.buffer = Buffer::Whole(data);
        } else {
            self.pieces()[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    pub(super) fn take_hole(&mut self, offset: u64, length: u32) -> Result<(), PeerMisbehaved> {
        self.cover(offset, length.into())?;
        self.holes.insert(offset..offset + u64::from(length));
        // Nobody wrote there: `cover` sees to that.
        self.pieces();
        Ok(())
    }

    pub(super) fn finish(self) -> Result<ReadReply, PeerMisbehaved> {
        let missing = u64::from(self.length) - self.covered.total();
        if missing != 0 {
            return Err(PeerMisbehaved::MissingContent(missing));
        }
        Ok(ReadReply {
            data: match self.buffer {
                Buffer::Nothing => Bytes::new(),
                Buffer::Whole(data) => data,
                Buffer::Pieces(pieces) => pieces.freeze(),
            },
            holes: self.holes.0,
        })
    }

    /// Notes a content chunk and gives its place in the buffer: "MUST lie within the bounds of the original offset
    /// and length of the client's request, and MUST NOT overlap with the bounds of any earlier content chunk".
    fn cover(&mut self, offset: u64, length: u64) -> Result<usize, PeerMisbehaved> {
        let outside = PeerMisbehaved::ContentOutsideRequest { offset, length };
        let at = offset.checked_sub(self.offset).ok_or(outside)?;
        if at
            .checked_add(length)
            .is_none_or(|end| end > u64::from(self.length))
        {
            return Err(outside);
        }
        self.chunks += 1;
        if self.chunks > MAX_CONTENT_CHUNKS {
            return Err(PeerMisbehaved::TooManyChunks);
        }
        if !self.covered.insert(offset..offset + length) {
            return Err(PeerMisbehaved::OverlappingContent { offset });
        }
        if self.dont_fragment && self.chunks > 1 {
            return Err(PeerMisbehaved::Fragmented);
        }
        usize::try_from(at).map_err(|_| outside)
    }

    fn pieces(&mut self) -> &mut BytesMut {
        if !matches!(self.buffer, Buffer::Pieces(_)) {
            self.buffer = Buffer::Pieces(BytesMut::zeroed(self.length as usize));
        }
        match &mut self.buffer {
            Buffer::Pieces(pieces) => pieces,
            Buffer::Nothing | Buffer::Whole(_) => unreachable!("made above"),
        }
    }
}

/// Ranges in order that neither touch nor overlap.
#[derive(Debug, Default)]
struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range, joined with its neighbours; false if it overlaps one that is there.
    fn insert(&mut self, range: Range<u64>) -> bool {
        let at = self.0.partition_point(|other| other.end <= range.start);
        if self.0.get(at).is_some_and(|next| next.start < range.end) {
            return false;
        }
        let joins_next = self.0.get(at).is_some_and(|next| next.start == range.end);
        let joins_last = at > 0 && self.0[at - 1].end == range.start;
        match (joins_last, joins_next) {
            (true, true) => {
                self.0[at - 1].end = self.0[at].end;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].end = range.end,
            (false, true) => self.0[at].start = range.start,
            (false, false) => self.0.insert(at, range),
        }
        true
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[test]
    fn pieces_in_any_order_make_the_whole() {
        let mut read = ReadAssembly::new(100, 10, false);
        read.take_data(106, Bytes::from_static(b"ghij")).unwrap();
        read.take_hole(102, 4).unwrap();
        read.take_data(100, Bytes::from_static(b"ab")).unwrap();
        let reply = read.finish().unwrap();
        assert_eq!(&reply.data[..], b"ab\0\0\0\0ghij");
        assert_eq!(format!("{:?}", reply.holes), "[102..106]");
    }

    #[test]
    fn a_chunk_outside_the_request_is_refused() {
        for (offset, len) in [
            (99, 1),
            (99, 2),
            (109, 2),
            (110, 1),
            (u64::MAX, 1),
            (0, 10),
            (100, 11),
        ] {
            let mut read = ReadAssembly::new(100, 10, false);
            let found = read.take_data(offset, data(len));
            assert!(
                matches!(found, Err(PeerMisbehaved::ContentOutsideRequest { .. })),
                "{offset}+{len}: {found:?}"
            );
        }
        let mut read = ReadAssembly::new(100, 10, false);
        assert!(read.take_hole(100, u32::MAX).is_err());
    }

    #[test]
    fn overlaps_and_gaps_are_refused() {
        let mut read = ReadAssembly::new(0, 10, false);
        read.take_data(4, data(4)).unwrap();
        for (offset, len) in [(4, 4), (3, 2), (7, 1), (0, 10), (5, 1)] {
            assert_eq!(
                read.take_data(offset, data(len)),
                Err(PeerMisbehaved::OverlappingContent { offset })
            );
        }
        read.take_data(0, data(4)).unwrap();
        assert_eq!(read.finish(), Err(PeerMisbehaved::MissingContent(2)));
    }

    #[test]
    fn an_unfragmented_reply_has_one_chunk() {
        let mut read = ReadAssembly::new(0, 10, true);
        read.take_data(0, data(5)).unwrap();
        assert_eq!(read.take_data(5, data(5)), Err(PeerMisbehaved::Fragmented));
    }

    #[test]
    fn chunk_count_limit_is_exact() {
        let count = u32::try_from(MAX_CONTENT_CHUNKS).unwrap();
        let mut read = ReadAssembly::new(0, count + 1, false);
        for n in 0..count {
            read.take_hole(n.into(), 1).unwrap();
        }
        assert_eq!(
            read.take_hole(count.into(), 1),
            Err(PeerMisbehaved::TooManyChunks)
        );
    }

    proptest! {
        #[test]
        fn every_order_of_pieces_gives_the_same(cuts in proptest::collection::btree_set(1u32..500, 0..20), seed: u64) {
            let whole: Vec<u8> = (0..500u32).map(|n| (n % 251) as u8).collect();
            let mut pieces: Vec<_> = cuts.iter().copied().chain([500]).collect();
            let mut start = 0;
            let mut ranges: Vec<_> = pieces.drain(..).map(|end| { let r = start..end; start = end; r }).collect();
            // A cheap shuffle that depends on the seed.
            ranges.sort_by_key(|range| u64::from(range.start).wrapping_mul(seed | 1));
            let mut read = ReadAssembly::new(1000, 500, false);
            for range in ranges {
                let bytes = Bytes::copy_from_slice(&whole[range.start as usize..range.end as usize]);
                read.take_data(1000 + u64::from(range.start), bytes).unwrap();
            }
            prop_assert_eq!(&read.finish().unwrap().data[..], &whole[..]);
        }
    }
}
