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
    /// What an earlier run could not read, of which nothing but its size is known.
    pub fn unlisted(bytes: u64) -> Self {
        Self {
            bytes,
            count: u64::from(bytes > 0),
            ..Self::default()
        }
    }

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

    /// Adds what was found behind all of this.
    pub fn append(&mut self, behind: &Self) {
        let counted: u64 = behind.listed.iter().map(|range| range.len()).sum();
        let listed = behind.listed.len() as u64;
        for range in &behind.listed {
            self.add(*range);
        }
        // What was too much to be listed there is not listed here either.
        self.bytes += behind.bytes - counted;
        self.count += behind.count - listed;
        self.last_end = behind.last_end.or(self.last_end);
    }

    /// The error that a job ends with that is otherwise good; `None` if everything could be read.
    pub fn error(&self) -> Option<Error> {
        if self.bytes == 0 {
            return None;
        }
        let message = format!(
            "{} bytes in {} ranges could not be read when the image was made",
            self.bytes, self.count
        );
        let error = Error::new(ErrorKind::Damaged, message);
        Some(match self.listed.first() {
            Some(first) => error.in_range(*first),
            None => error,
        })
    }
}

fn as_pairs<S: Serializer>(ranges: &[ByteRange], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ranges.iter().map(|range| [range.start(), range.end()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_damage_all_the_same() {
        let mut ranges = UnreadableRanges::unlisted(4096);
        assert_eq!(ranges.error().unwrap().kind(), ErrorKind::Damaged);
        ranges.add(ByteRange::new(0, 10).unwrap());
        assert_eq!((ranges.bytes, ranges.count, ranges.listed.len()), (4106, 2, 1));
        assert!(UnreadableRanges::unlisted(0).error().is_none());
    }

    #[test]
    fn two_lists_are_as_one() {
        let range = |index: u64| ByteRange::new(index * 4096, 4096 >> (index % 2)).unwrap();
        let mut whole = UnreadableRanges::default();
        let mut parts = [UnreadableRanges::default(), UnreadableRanges::default()];
        for index in 0..3001 {
            whole.add(range(index));
            parts[usize::from(index >= 1401)].add(range(index));
        }
        let [mut first, second] = parts;
        first.append(&second);
        first.append(&UnreadableRanges::default());
        assert_eq!(first.bytes, whole.bytes);
        assert_eq!(first.listed, whole.listed);
        assert_eq!(first.last_end, whole.last_end);
        // Neighbours that met where the lists do are one.
        assert_eq!(first.count, whole.count);
    }

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
