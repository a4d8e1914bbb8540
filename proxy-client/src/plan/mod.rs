//! From block status to batches: pure, no I/O, no clock.
//!
//! `mapped` turns the chunks of one BLOCK_STATUS reply into extents with content, generation and place; `batch` cuts
//! them into pieces of work that lie in volume order on whole leaves; `reads` gathers the direct reads of a batch.
//!
//! Invariants: batches cover the volume exactly once and in order; the extents of a batch cover it exactly once.

pub mod batch;
pub mod mapped;
pub mod reads;
