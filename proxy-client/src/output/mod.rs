//! Where images go: files and streams that are written front to back.
//!
//! Invariants:
//! * nothing that exists is ever overwritten; what is written appears under its name whole and durable, or not at all;
//! * after the first error of an output every later call says so: nothing is written behind a gap.

mod partial_file;
mod stream;

pub(crate) use partial_file::PartialFile;
pub use stream::{FileOutput, Output, StdoutOutput};
