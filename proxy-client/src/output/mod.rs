//! Where images go: files and streams that are written front to back.
//!
//! Invariants:
//! * nothing that exists is ever overwritten; what is written appears under its name whole and durable, or not at all;
//! * what is kept of an unfinished image was made durable before a checkpoint in it says so;
//! * an image whose last sync failed is cut to its last checkpoint, so that nobody can take it for whole;
//! * after the first error of an output every later call says so: nothing is written behind a gap.

mod partial_file;
mod stream;

pub use partial_file::Remover;
pub(crate) use partial_file::{PartialFile, partial_name, remove_stale};
pub use stream::{FileOutput, Output, StdoutOutput};
