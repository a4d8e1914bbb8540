//! The mapping of a range, as one BLOCK_STATUS reply tells it.

use volmap::generation::Generation;
use volmap::map::Content;
use volmap::range::ByteRange;

/// `base:allocation`, bit 0: a hole.
const STATE_HOLE: u64 = 1;
/// `base:allocation`, bit 1: reads as zeroes.
const STATE_ZERO: u64 = 2;
/// `x-volmap:disk:*`, bit 63: the bytes lie on that disk, at the offset in the bits below.
const ON_DISK: u64 = 1 << 63;

/// What a metadata context that we selected says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextRole {
    /// `base:allocation`.
    Allocation,
    /// `x-volmap:generation`.
    Generation,
    /// `x-volmap:disk:<identity>` of the disk with this number.
    Disk(u16),
}

/// One context's descriptors, as (length, status) pairs from the start of the queried range on.
#[derive(Clone, Debug)]
pub struct ContextChunk {
    /// Whose they are.
    pub role: ContextRole,
    /// Length in bytes and status of each.
    pub descriptors: Vec<(u64, u64)>,
}

/// Where data lies on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskPlace {
    /// Number of the disk in the job's list.
    pub disk: u16,
    /// Byte offset on it.
    pub offset: u64,
}

/// An extent of the frozen image with its mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedExtent {
    /// The bytes of the volume.
    pub range: ByteRange,
    /// What they hold.
    pub content: Content,
    /// The generation of the mapping.
    pub generation: Generation,
    /// Where data can be read directly: only with a generation, only for data.
    pub place: Option<DiskPlace>,
}

impl MappedExtent {
    /// Whether it is data without a location: perhaps for a moment only, while the host looks where it went.
    pub fn is_withheld(&self) -> bool {
        self.content == Content::Data && !self.generation.is_direct()
    }

    /// The part of this extent that lies in `range`.
    pub fn clipped(&self, range: ByteRange) -> Option<Self> {
        let clipped = self.range.intersection(range)?;
        let skipped = clipped.start() - self.range.start();
        let place = self.place.map(|p| DiskPlace {
            disk: p.disk,
            offset: p.offset + skipped,
        });
        Some(Self {
            range: clipped,
            place,
            ..*self
        })
    }
}

/// A host said something about its mapping that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MappingError {
    /// Nothing was said about the first byte of the range.
    #[error("the host's block status covers nothing of the range that was asked for")]
    Empty,
    /// Two disks claim the same byte (docs/x-volmap.md: a descriptor lies on at most one disk).
    #[error("the host says that byte {0} lies on two disks at once")]
    TwoDisks(u64),
    /// The extent would end past 2^63 on its disk.
    #[error("the host places byte {0} past the end of any disk")]
    Wraps(u64),
}

/// Walks one context's descriptors in step with the others.
struct Cursor<'a> {
    role: ContextRole,
    rest: std::slice::Iter<'a, (u64, u64)>,
    /// Bytes left of the current descriptor.
    left: u64,
    /// Bytes of it that are behind us: an address belongs to the descriptor's first byte.
    done: u64,
    status: u64,
}

impl<'a> Cursor<'a> {
    fn new(chunk: &'a ContextChunk) -> Self {
        Self {
            role: chunk.role,
            rest: chunk.descriptors.iter(),
            left: 0,
            done: 0,
            status: 0,
        }
    }

    /// Moves on until bytes are left; `false` at the end.
    fn refill(&mut self) -> bool {
        while self.left == 0 {
            let Some(&(len, status)) = self.rest.next() else {
                return false;
            };
            (self.left, self.done, self.status) = (len, 0, status);
        }
        true
    }

    fn advance(&mut self, bytes: u64) {
        self.left -= bytes;
        self.done += bytes;
    }
}

/// The extents that `chunks` tell of `asked`, from its start on, as far as every context reaches: only that length of a reply may
/// be used (docs/x-volmap.md, "Replies"). Without chunks (a server that has no contexts) all of it is data.
///
/// # Errors
/// [`MappingError`].
pub fn merge_chunks(asked: ByteRange, chunks: &[ContextChunk]) -> Result<Vec<MappedExtent>, MappingError> {
    let mut cursors: Vec<Cursor<'_>> = chunks.iter().map(Cursor::new).collect();
    let mut extents: Vec<MappedExtent> = Vec::new();
    let mut at = asked.start();
    while at < asked.end() && cursors.iter_mut().all(Cursor::refill) {
        let len = cursors
            .iter()
            .map(|c| c.left)
            .min()
            .unwrap_or(u64::MAX)
            .min(asked.end() - at);
        let Some(range) = ByteRange::new(at, len) else {
            return Err(MappingError::Wraps(at));
        };
        let extent = extent_here(range, &cursors)?;
        if !extents.last_mut().is_some_and(|last| join(last, &extent)) {
            extents.push(extent);
        }
        cursors.iter_mut().for_each(|c| c.advance(len));
        at = range.end();
    }
    if extents.is_empty() {
        Err(MappingError::Empty)
    } else {
        Ok(extents)
    }
}

fn extent_here(range: ByteRange, cursors: &[Cursor<'_>]) -> Result<MappedExtent, MappingError> {
    let mut extent = MappedExtent {
        range,
        content: Content::Data,
        generation: Generation::NEVER_DIRECT,
        place: None,
    };
    for cursor in cursors {
        match cursor.role {
            ContextRole::Allocation => {
                extent.content = match (cursor.status & STATE_ZERO != 0, cursor.status & STATE_HOLE != 0) {
                    (true, true) => Content::Hole,
                    (true, false) => Content::Zero,
                    // A hole that does not promise zeroes has to be read.
                    (false, _) => Content::Data,
                };
            }
            ContextRole::Generation => extent.generation = Generation::from_wire(cursor.status),
            ContextRole::Disk(disk) if cursor.status & ON_DISK != 0 => {
                if extent.place.is_some() {
                    return Err(MappingError::TwoDisks(range.start()));
                }
                let offset = (cursor.status & !ON_DISK)
                    .checked_add(cursor.done)
                    .filter(|offset| offset.checked_add(range.len()).is_some_and(|end| end <= ON_DISK))
                    .ok_or(MappingError::Wraps(range.start()))?;
                extent.place = Some(DiskPlace { disk, offset });
            }
            ContextRole::Disk(_) => {}
        }
    }
    if extent.content != Content::Data || !extent.generation.is_direct() {
        extent.place = None;
    }
    Ok(extent)
}

/// Makes `next` part of `last` where the mapping simply goes on.
pub fn join(last: &mut MappedExtent, next: &MappedExtent) -> bool {
    let continues = match (last.place, next.place) {
        (None, None) => true,
        (Some(a), Some(b)) => a.disk == b.disk && a.offset + last.range.len() == b.offset,
        _ => false,
    };
    if continues
        && last.range.end() == next.range.start()
        && (last.content, last.generation) == (next.content, next.generation)
        && let Some(joined) = ByteRange::from_bounds(last.range.start(), next.range.end())
    {
        last.range = joined;
        return true;
    }
    false
}

/// The parts of `extents` that the answer `now` does not confirm (law P3): other generation, or no answer. Both lists are
/// in order; generation 0 confirms nothing that was direct, but an extent that never was direct needs no confirmation.
pub fn unconfirmed(extents: &[MappedExtent], now: &[MappedExtent]) -> Vec<ByteRange> {
    differing(extents.iter().filter(|e| e.generation.is_direct()), now)
}

/// The parts of `extents` of which a map that is asked for now would tell something else (law P0): what is not confirmed, and data without
/// a location that has one by now.
pub fn outdated(extents: &[MappedExtent], now: &[MappedExtent]) -> Vec<ByteRange> {
    let told = |e: &&MappedExtent| e.generation.is_direct() || e.is_withheld();
    differing(extents.iter().filter(told), now)
}

/// The parts of `extents` whose generation is another one in the answer `now`, or is not in it.
fn differing<'a>(extents: impl Iterator<Item = &'a MappedExtent>, now: &[MappedExtent]) -> Vec<ByteRange> {
    let mut moved: Vec<ByteRange> = Vec::new();
    let mut answers = now.iter().peekable();
    for extent in extents {
        let mut at = extent.range.start();
        while at < extent.range.end() {
            while answers.next_if(|a| a.range.end() <= at).is_some() {}
            let (end, confirmed) = match answers.peek() {
                Some(answer) if answer.range.contains(at) => {
                    (answer.range.end(), answer.generation == extent.generation)
                }
                Some(answer) => (answer.range.start(), false),
                None => (u64::MAX, false),
            };
            let end = end.min(extent.range.end());
            if !confirmed && let Some(range) = ByteRange::from_bounds(at, end) {
                match moved.last_mut() {
                    Some(last) if last.end() == at => {
                        if let Some(joined) = ByteRange::from_bounds(last.start(), end) {
                            *last = joined;
                        }
                    }
                    _ => moved.push(range),
                }
            }
            at = end;
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    fn chunk(role: ContextRole, descriptors: &[(u64, u64)]) -> ContextChunk {
        ContextChunk {
            role,
            descriptors: descriptors.to_vec(),
        }
    }

    fn direct(start: u64, end: u64, generation: u64, offset: u64) -> MappedExtent {
        MappedExtent {
            range: range(start, end),
            content: Content::Data,
            generation: Generation::from_wire(generation),
            place: Some(DiskPlace { disk: 0, offset }),
        }
    }

    #[test]
    fn contexts_need_not_line_up_and_the_shortest_one_rules() {
        let chunks = [
            chunk(ContextRole::Allocation, &[(100, 0), (100, 3), (300, 0)]),
            chunk(ContextRole::Generation, &[(450, 9)]),
            chunk(
                ContextRole::Disk(0),
                &[(50, ON_DISK | 1000), (450, ON_DISK | 5000)],
            ),
        ];
        let extents = merge_chunks(range(1000, 2000), &chunks).unwrap();
        assert_eq!(extents[0], direct(1000, 1050, 9, 1000));
        assert_eq!(extents[1], direct(1050, 1100, 9, 5000));
        assert_eq!(
            (extents[2].range, extents[2].content, extents[2].place),
            (range(1100, 1200), Content::Hole, None)
        );
        assert_eq!(extents[3], direct(1200, 1450, 9, 5150));
        assert_eq!(extents.len(), 4);
    }

    #[test]
    fn a_descriptor_beyond_the_question_is_clipped() {
        let extents = merge_chunks(range(0, 10), &[chunk(ContextRole::Allocation, &[(100, 0)])]).unwrap();
        assert_eq!(extents[0].range, range(0, 10));
    }

    #[test]
    fn without_a_generation_there_is_no_place() {
        let chunks = [
            chunk(ContextRole::Generation, &[(10, 0)]),
            chunk(ContextRole::Disk(0), &[(10, ON_DISK | 4096)]),
        ];
        assert_eq!(merge_chunks(range(0, 10), &chunks).unwrap()[0].place, None);
    }

    #[test]
    fn contradictions_are_refused() {
        let two = [
            chunk(ContextRole::Generation, &[(10, 1)]),
            chunk(ContextRole::Disk(0), &[(10, ON_DISK)]),
            chunk(ContextRole::Disk(1), &[(10, ON_DISK)]),
        ];
        assert_eq!(merge_chunks(range(0, 10), &two), Err(MappingError::TwoDisks(0)));
        let wraps = [
            chunk(ContextRole::Generation, &[(10, 1)]),
            chunk(ContextRole::Disk(0), &[(10, u64::MAX - 3)]),
        ];
        assert_eq!(merge_chunks(range(0, 10), &wraps), Err(MappingError::Wraps(0)));
        assert_eq!(
            merge_chunks(range(0, 10), &[chunk(ContextRole::Allocation, &[])]),
            Err(MappingError::Empty)
        );
    }

    #[test]
    fn a_hole_without_the_zero_promise_is_data() {
        let extents = merge_chunks(
            range(0, 20),
            &[chunk(ContextRole::Allocation, &[(10, 1), (10, 2)])],
        )
        .unwrap();
        assert_eq!(extents[0].content, Content::Data);
        assert_eq!(extents[1].content, Content::Zero);
    }

    #[test]
    fn only_the_same_generation_confirms() {
        let learnt = [
            direct(0, 100, 5, 0),
            direct(100, 200, 6, 900),
            direct(300, 400, 5, 300),
        ];
        let answer = |start, end, generation| MappedExtent {
            place: None,
            ..direct(start, end, generation, 0)
        };

        assert_eq!(
            unconfirmed(
                &learnt,
                &[answer(0, 100, 5), answer(100, 200, 6), answer(200, 400, 5)]
            ),
            []
        );
        let partly = [
            answer(0, 40, 5),
            answer(40, 60, 7),
            answer(60, 100, 5),
            answer(100, 400, 6),
        ];
        assert_eq!(unconfirmed(&learnt, &partly), [range(40, 60), range(300, 400)]);
        assert_eq!(
            unconfirmed(&learnt, &[answer(0, 150, 0)]),
            [range(0, 200), range(300, 400)]
        );
        assert_eq!(unconfirmed(&learnt, &[]), [range(0, 200), range(300, 400)]);
    }

    #[test]
    fn what_was_never_direct_needs_no_confirmation() {
        let nbd = MappedExtent {
            generation: Generation::NEVER_DIRECT,
            place: None,
            ..direct(0, 10, 1, 0)
        };
        assert_eq!(unconfirmed(&[nbd], &[]), []);
    }

    #[test]
    fn a_map_is_outdated_where_data_has_a_location_by_now() {
        let without = |start, end, content| MappedExtent {
            generation: Generation::NEVER_DIRECT,
            place: None,
            content,
            ..direct(start, end, 1, 0)
        };
        let learnt = [
            without(0, 100, Content::Data),
            without(100, 200, Content::Hole),
            direct(200, 300, 5, 0),
        ];
        let now = |start, end, generation| direct(start, end, generation, 0);
        assert_eq!(
            outdated(&learnt, &[now(0, 40, 0), now(40, 200, 7), now(200, 300, 5)]),
            [range(40, 100)]
        );
        assert_eq!(
            outdated(&learnt, &[now(0, 200, 0), now(200, 300, 6)]),
            [range(200, 300)]
        );
        assert_eq!(outdated(&learnt, &[now(0, 200, 0), now(200, 300, 5)]), []);
    }
}
