//! Ranges that could not be read when an image was made.

use serde::{Serialize, Serializer};
use volmap::range::ByteRange;

use crate::error::{Error, ErrorKind};

/// Ranges that are listed one by one: more tell an operator nothing.
const LISTED_MAX: usize = 1000;

/// Unreadable ranges of a volume: how much it is, and the first thousand of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct UnreadableRanges {
    /// Bytes in all of them.
    pub bytes: u64,
    /// How many there are.
    pub count: u64,
    /// The first ones, neighbours joined; `[start, end]` in JSON.
    #[serde(serialize_with = "as_pairs")]
    pub listed: Vec<ByteRange>,
    /// Where the last one ends, listed or not.
    #[serde(skip)]
    last_end: Option<u64>,
}

impl UnreadableRanges {
    /// Adds the next range, in volume order.
    pub fn add(&mut self, range: ByteRange) {
        self.bytes += range.len();
        let continues = self.last_end.replace(range.end()) == Some(range.start());
        if !continues {
            self.count += 1;
            if self.listed.len() < LISTED_MAX {
                self.listed.push(range);
            }
        } else if let Some(last) = self.listed.last_mut()
            && last.end() == range.start()
            && let Some(joined) = ByteRange::from_bounds(last.start(), range.end())
        {
            *last = joined;
        }
    }

    /// The error that a job ends with that is otherwise good; `None` if everything could be read.
    pub fn error(&self) -> Option<Error> {
        let first = self.listed.first()?;
        let message = format!(
            "{} bytes in {} ranges could not be read when the image was made",
            self.bytes, self.count
        );
        Some(Error::new(ErrorKind::Damaged, message).in_range(*first))
    }
}

fn as_pairs<S: Serializer>(ranges: &[ByteRange], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ranges.iter().map(|range| [range.start(), range.end()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_and_the_list_is_bounded() {
        let mut ranges = UnreadableRanges::default();
        assert!(ranges.error().is_none());
        ranges.add(ByteRange::new(0, 512).unwrap());
        ranges.add(ByteRange::new(512, 512).unwrap());
        for index in 1..3000 {
            ranges.add(ByteRange::new(index * 4096, 512).unwrap());
            ranges.add(ByteRange::new(index * 4096 + 512, 1).unwrap());
        }
        assert_eq!(ranges.listed[0], ByteRange::new(0, 1024).unwrap());
        assert_eq!(ranges.listed[1], ByteRange::new(4096, 513).unwrap());
        assert_eq!(
            (ranges.listed.len(), ranges.count, ranges.bytes),
            (LISTED_MAX, 3000, 1024 + 2999 * 513)
        );
        assert_eq!(ranges.error().unwrap().kind(), ErrorKind::Damaged);
    }
}
