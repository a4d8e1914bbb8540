//! What an agent keeps: volumes, origins and tags by name, the frozen images made of them, and the control socket by
//! which an operator freezes, thaws and lists.
//!
//! Invariants:
//!
//! * one generation clock a process, so that no generation is used twice (law H3);
//! * an export name stands for one frozen image at a time, and a name is reserved before its freeze begins;
//! * a thawed frozen image is ended before its name is free again (law H6);
//! * the registry is never locked while a volume or frozen image is asked, which may take for ever.

pub mod control;
mod open;
mod registry;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod under_way;
mod writable;

pub use open::OriginSource;
pub use registry::{Host, TAG_SUFFIX};
pub use report::{ExportReport, FrozenReport, Listing, State, VolumeReport};
pub use source::{CopyAreaFill, Source, VolumeKind};
