//! Half-open byte ranges that are never empty.

use std::fmt;

/// A non-empty half-open range of bytes, `start..end`, in one address space (a volume or a store).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The range of `len` bytes from `start`; `None` when it is empty or wraps past 2^64.
    pub fn new(start: u64, len: u64) -> Option<Self> {
        Self::from_bounds(start, start.checked_add(len)?)
    }

    /// The range `start..end`; `None` when it is empty or reversed.
    pub fn from_bounds(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// First byte of the range.
    pub fn start(self) -> u64 {
        self.start
    }

    /// First byte after the range.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a ByteRange is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether `offset` lies in the range.
    pub fn contains(self, offset: u64) -> bool {
        self.start <= offset && offset < self.end
    }

    /// Whether every byte of `other` lies in this range.
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes that both ranges hold.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::from_bounds(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range on multiples of `granule` (not 0) that covers this one; `None` past 2^64.
    pub fn align_outward(self, granule: u64) -> Option<Self> {
        Some(Self {
            start: self.start - self.start % granule,
            end: self.end.checked_next_multiple_of(granule)?,
        })
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        assert_eq!(ByteRange::new(5, 0), None);
        assert_eq!(ByteRange::new(u64::MAX, 2), None);
        assert_eq!(ByteRange::from_bounds(7, 6), None);
        assert_eq!(
            ByteRange::new(u64::MAX - 1, 1).map(ByteRange::end),
            Some(u64::MAX)
        );
    }

    #[test]
    fn align_outward_covers() {
        let range = ByteRange::new(5000, 10).unwrap();
        let aligned = range.align_outward(4096).unwrap();
        assert_eq!((aligned.start(), aligned.end()), (4096, 8192));
        assert!(aligned.covers(range));
        assert_eq!(ByteRange::new(u64::MAX - 3, 2).unwrap().align_outward(4096), None);
    }
}
