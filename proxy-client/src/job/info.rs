//! `info`: what a server and its exports say of themselves, and the map of one.
//!
//! Names and texts come from a server and go to terminals: what could steer one is escaped, in JSON too.

mod details;
mod meaning;
mod print;
mod totals;

pub use details::{ExportDetails, ListedExports, details, list};
pub use print::{MapOptions, print_map};
