//! Which maps are as young as the latest confirmation (law P0).
//!
//! The question that confirms what was read (law P3) is asked about what is to be read next as well. What it confirms needs no question
//! of its own before it is read by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volmap::range::ByteRange;

use super::limits::{BATCHES_AHEAD, BATCHES_IN_FLIGHT, EXTENTS_AHEAD, EXTENTS_HELD};
use crate::plan::batch::Batch;
use crate::plan::mapped::{MappedExtent, outdated};

/// The questions of a job so far, and the batches that were not begun yet.
#[derive(Debug, Default)]
pub(super) struct Confirmations(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Questions that were asked.
    asked: u64,
    /// The latest question that was answered, by the order of asking.
    answered: u64,
    /// By the start of their ranges.
    upcoming: BTreeMap<u64, Upcoming>,
    /// Where something begins that is not fetched. What the host would have to say of it nobody needs.
    gaps: BTreeSet<u64>,
}

#[derive(Debug)]
struct Upcoming {
    batch: Arc<Batch>,
    /// The question that confirmed all of the map last, or the latest that was answered before the map was asked for.
    age: u64,
    /// Whether a question confirmed all of it since the map was asked for.
    confirmed: bool,
}

/// A question that is about to be asked.
#[derive(Debug)]
pub(super) struct Question {
    number: u64,
    /// What to ask about.
    pub(super) span: ByteRange,
    ahead: Vec<Arc<Batch>>,
}

impl Confirmations {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The age of a map that is asked for now.
    pub(super) fn age_of_a_map(&self) -> u64 {
        self.state().answered
    }

    /// A batch waits for its turn; its map has that age.
    pub(super) fn announce(&self, batch: &Arc<Batch>, age: u64) {
        let upcoming = Upcoming {
            batch: Arc::clone(batch),
            age,
            confirmed: false,
        };
        self.state().upcoming.insert(batch.range.start(), upcoming);
    }

    /// Nothing of `range` will be fetched.
    pub(super) fn announce_gap(&self, range: ByteRange) {
        let mut state = self.state();
        state.gaps.insert(range.start());
        // Between two gaps is a batch, and older ones are done.
        if state.gaps.len() > BATCHES_IN_FLIGHT + BATCHES_AHEAD + 1 {
            state.gaps.pop_first();
        }
    }

    /// The turn of a batch has come: whether its map is older than the latest confirmation, or may be of a moment in which the host told
    /// no locations, and has to be confirmed first.
    pub(super) fn begin(&self, batch: &Batch) -> bool {
        let mut state = self.state();
        let upcoming = state.upcoming.remove(&batch.range.start());
        // Numbers are of the order of asking, so that an older answer that comes later confirms nothing.
        upcoming.is_none_or(|upcoming| {
            let withheld = || batch.extents.iter().any(MappedExtent::is_withheld);
            upcoming.age < state.answered || !upcoming.confirmed && withheld()
        })
    }

    /// A question about `span`, and about the batches that come next behind it, up to the next gap.
    pub(super) fn ask(&self, span: ByteRange) -> Question {
        let mut state = self.state();
        state.asked += 1;
        let mut extents = 0;
        let gap = state.gaps.range(span.end()..).next();
        let next = state
            .upcoming
            .range(span.start()..gap.copied().unwrap_or(u64::MAX))
            .map(|(_, upcoming)| &upcoming.batch);
        let ahead: Vec<_> = next
            .take_while(|batch| {
                // The first one always: it would have a question of its own otherwise.
                let first = extents == 0;
                extents += batch.extents.len();
                first || extents <= EXTENTS_AHEAD
            })
            .take_while(|batch| batch.extents.len() <= EXTENTS_HELD)
            .cloned()
            .collect();
        let end = ahead
            .last()
            .map_or(span.end(), |batch| batch.range.end().max(span.end()));
        Question {
            number: state.asked,
            span: ByteRange::from_bounds(span.start(), end).unwrap_or(span),
            ahead,
        }
    }

    /// The question was answered.
    pub(super) fn answered(&self, question: &Question, now: &[MappedExtent]) {
        let mut state = self.state();
        state.answered = state.answered.max(question.number);
        for batch in &question.ahead {
            if let Some(upcoming) = state.upcoming.get_mut(&batch.range.start())
                && outdated(&batch.extents, now).is_empty()
            {
                upcoming.age = upcoming.age.max(question.number);
                upcoming.confirmed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use volmap::generation::Generation;
    use volmap::map::Content;

    use super::*;

    fn extent(start: u64, end: u64, generation: u64) -> MappedExtent {
        MappedExtent {
            range: ByteRange::from_bounds(start, end).unwrap(),
            content: Content::Data,
            generation: Generation::from_wire(generation),
            place: None,
        }
    }

    fn batch(start: u64) -> Arc<Batch> {
        let extent = extent(start, start + 10, 1);
        Arc::new(Batch {
            range: extent.range,
            extents: vec![extent],
            stretches: Vec::new(),
            same: Vec::new(),
            same_blocks: Vec::new(),
        })
    }

    fn span(start: u64) -> ByteRange {
        ByteRange::new(start, 10).unwrap()
    }

    #[test]
    fn the_question_after_a_read_is_the_question_before_the_next() {
        let confirmations = Confirmations::default();
        let (second, third) = (batch(10), batch(20));
        confirmations.announce(&second, confirmations.age_of_a_map());
        confirmations.announce(&third, confirmations.age_of_a_map());
        let question = confirmations.ask(span(0));
        assert_eq!(question.span, ByteRange::new(0, 30).unwrap());
        confirmations.answered(&question, &[extent(0, 30, 1)]);
        assert!(!confirmations.begin(&second));
        assert!(!confirmations.begin(&third));
    }

    #[test]
    fn nothing_is_asked_about_a_gap() {
        let confirmations = Confirmations::default();
        let (second, third) = (batch(10), batch(40));
        confirmations.announce(&second, 0);
        confirmations.announce_gap(ByteRange::new(20, 20).unwrap());
        confirmations.announce(&third, 0);
        let question = confirmations.ask(span(0));
        assert_eq!(question.span, ByteRange::new(0, 20).unwrap());
        // A batch that is under way behind the gap asks about what comes next there.
        assert_eq!(confirmations.ask(span(30)).span, ByteRange::new(30, 20).unwrap());
    }

    #[test]
    fn what_moved_or_was_not_asked_about_is_stale() {
        let confirmations = Confirmations::default();
        let (second, third) = (batch(10), batch(20));
        confirmations.announce(&second, 0);
        let question = confirmations.ask(span(0));
        // Its map was asked for before the answer came.
        confirmations.announce(&third, 0);
        confirmations.answered(&question, &[extent(0, 15, 1), extent(15, 20, 2)]);
        assert!(confirmations.begin(&second));
        assert!(confirmations.begin(&third));
        // What was never announced is not known to be young.
        assert!(confirmations.begin(&third));
    }

    #[test]
    fn an_older_answer_that_comes_later_confirms_nothing() {
        let (older_says, younger_says) = (&[extent(0, 30, 1)], &[extent(0, 30, 2)]);
        for asked_about in [true, false] {
            let confirmations = Confirmations::default();
            let next = batch(20);
            confirmations.announce(&next, 0);
            let older = confirmations.ask(span(0));
            let mut younger = confirmations.ask(span(10));
            if !asked_about {
                younger.ahead.clear();
            }
            confirmations.answered(&younger, younger_says);
            confirmations.answered(&older, older_says);
            assert!(confirmations.begin(&next), "asked about: {asked_about}");
        }
    }

    #[test]
    fn data_without_a_location_is_asked_about_once_more() {
        let withheld = |start| {
            let extent = extent(start, start + 10, 0);
            Arc::new(Batch {
                range: extent.range,
                extents: vec![extent],
                stretches: Vec::new(),
                same: Vec::new(),
                same_blocks: Vec::new(),
            })
        };
        for (generation, stale) in [(0, false), (7, true)] {
            let confirmations = Confirmations::default();
            let (second, third) = (withheld(10), withheld(20));
            confirmations.announce(&second, 0);
            let question = confirmations.ask(span(0));
            confirmations.announce(&third, 0);
            confirmations.answered(&question, &[extent(0, 10, 1), extent(10, 20, generation)]);
            assert_eq!(confirmations.begin(&second), stale);
            assert!(confirmations.begin(&third));
        }
        // Also where nothing was ever confirmed.
        let confirmations = Confirmations::default();
        let first = withheld(0);
        confirmations.announce(&first, confirmations.age_of_a_map());
        assert!(confirmations.begin(&first));
    }

    #[test]
    fn a_map_that_is_asked_for_after_the_answer_is_young() {
        let confirmations = Confirmations::default();
        let question = confirmations.ask(span(0));
        confirmations.answered(&question, &[extent(0, 10, 1)]);
        let next = batch(10);
        confirmations.announce(&next, confirmations.age_of_a_map());
        assert!(!confirmations.begin(&next));
    }
}
