//! The chunks of one BLOCK_STATUS, put together.

use crate::proto::constants::ChunkCode;
use crate::proto::context::ContextId;
use crate::proto::error::PeerMisbehaved;
use crate::proto::limits::MAX_DESCRIPTORS;
use crate::proto::reply::{Descriptor, status_layout};

/// What one context says, from the queried offset on: at least one extent, and possibly more or less than was asked
/// for, but never past the end of the export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextStatus {
    /// The context.
    pub context: ContextId,
    /// Consecutive extents.
    pub descriptors: Vec<Descriptor>,
}

impl ContextStatus {
    /// Bytes that the extents cover.
    pub fn covered(&self) -> u64 {
        self.descriptors.iter().map(|descriptor| descriptor.length).sum()
    }
}

/// The chunks of one BLOCK_STATUS so far.
#[derive(Debug)]
pub(super) struct StatusAssembly {
    length: u64,
    /// Bytes from the queried offset to the end of the export.
    to_end: u64,
    req_one: bool,
    expected: Vec<ContextId>,
    found: Vec<ContextStatus>,
}

impl StatusAssembly {
    pub(super) fn new(length: u64, to_end: u64, req_one: bool, expected: Vec<ContextId>) -> Self {
        Self {
            length,
            to_end,
            req_one,
            expected,
            found: Vec::new(),
        }
    }

    /// Bytes that a chunk of this reply has at most.
    pub(super) fn longest_chunk(&self, chunk: ChunkCode) -> u64 {
        let (fixed, each) = status_layout(chunk);
        let count = if self.req_one { 1 } else { MAX_DESCRIPTORS as u64 };
        fixed + each * count
    }

    pub(super) fn take(
        &mut self,
        context: ContextId,
        mut descriptors: Vec<Descriptor>,
    ) -> Result<(), PeerMisbehaved> {
        if !self.expected.contains(&context) {
            return Err(PeerMisbehaved::UnknownContext(context));
        }
        if self.found.iter().any(|found| found.context == context) {
            return Err(PeerMisbehaved::ContextTwice(context));
        }
        let mut before = 0_u64;
        for descriptor in &mut descriptors {
            // "The sum of the length fields of the first N-1 extents MUST be less than the requested length";
            // with REQ_ONE "that descriptor MUST NOT exceed the length of the original request".
            if before >= self.length || (self.req_one && descriptor.length > self.length) {
                return Err(PeerMisbehaved::ExtentsBeyondRequest(context));
            }
            // There is nothing behind the end, whatever is said of it. `before` is below the end: it is below the
            // requested length.
            descriptor.length = descriptor.length.min(self.to_end - before);
            before += descriptor.length;
        }
        if self.req_one && descriptors.len() != 1 {
            return Err(PeerMisbehaved::ExtentsBeyondRequest(context));
        }
        self.found.push(ContextStatus { context, descriptors });
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Vec<ContextStatus>, PeerMisbehaved> {
        let mut inorder = Vec::with_capacity(self.expected.len());
        for id in self.expected {
            let at = self
                .found
                .iter()
                .position(|found| found.context == id)
                .ok_or(PeerMisbehaved::MissingContext(id))?;
            inorder.push(self.found.swap_remove(at));
        }
        Ok(inorder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ContextId = ContextId(3);
    const B: ContextId = ContextId(9);

    fn status(length: u64, req_one: bool) -> StatusAssembly {
        StatusAssembly::new(length, 1000, req_one, vec![A, B])
    }

    fn extents(lengths: &[u64]) -> Vec<Descriptor> {
        lengths
            .iter()
            .map(|&length| Descriptor { length, status: 5 })
            .collect()
    }

    #[test]
    fn contexts_come_in_any_order_and_leave_in_that_of_the_request() {
        let mut reply = status(100, false);
        reply.take(B, extents(&[10])).unwrap();
        reply.take(A, extents(&[50, 50])).unwrap();
        let found = reply.finish().unwrap();
        assert_eq!(found[0].context, A);
        assert_eq!((found[0].covered(), found[1].covered()), (100, 10));
    }

    #[test]
    fn a_context_missing_unknown_or_twice_is_refused() {
        let mut reply = status(100, false);
        assert_eq!(
            reply.take(ContextId(4), extents(&[1])),
            Err(PeerMisbehaved::UnknownContext(ContextId(4)))
        );
        reply.take(A, extents(&[1])).unwrap();
        assert_eq!(reply.take(A, extents(&[1])), Err(PeerMisbehaved::ContextTwice(A)));
        assert_eq!(reply.finish(), Err(PeerMisbehaved::MissingContext(B)));
    }

    #[test]
    fn only_the_last_extent_reaches_the_end_of_the_request() {
        assert!(status(100, false).take(A, extents(&[99, 500])).is_ok());
        assert_eq!(
            status(100, false).take(A, extents(&[100, 1])),
            Err(PeerMisbehaved::ExtentsBeyondRequest(A))
        );
        assert_eq!(
            status(100, false).take(A, extents(&[u64::MAX, 1])),
            Err(PeerMisbehaved::ExtentsBeyondRequest(A))
        );
    }

    #[test]
    fn req_one_is_one_extent_within_the_request() {
        assert!(status(100, true).take(A, extents(&[100])).is_ok());
        assert!(status(100, true).take(A, extents(&[101])).is_err());
        assert!(status(100, true).take(A, extents(&[1, 1])).is_err());
    }

    #[test]
    fn extents_are_cut_at_the_end_of_the_export() {
        let mut reply = StatusAssembly::new(100, 1000, false, vec![A]);
        reply.take(A, extents(&[50, u64::MAX])).unwrap();
        assert_eq!(reply.finish().unwrap()[0].covered(), 1000);
    }
}
