//! What an agent keeps: volumes, origins and tags by name, the frozen images made of them, and the control socket by
//! which an operator freezes, thaws and lists.
//!
//! Invariants:
//!
//! * one generation clock a process, so that no generation is used twice (law H3);
//! * an export name stands for one frozen image at a time, and a name is reserved before its freeze begins;
//! * a thawed frozen image is ended before its name is free again (law H6);
//! * a hook that was begun is followed by its last one, and a file system that was frozen is thawed, also when the agent is killed (`guardian`);
//! * the registry is never locked while a volume or frozen image is asked, which may take for ever.

mod around;
pub mod control;
mod freezing;
mod guardian;
mod leftovers;
mod open;
mod registry;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod under_way;
mod volume_set;
mod writable;

pub use around::Around;
pub use guardian::watch;
pub use leftovers::{FoundLeftover, leftovers, remove};
pub use open::OriginSource;
pub use registry::{Host, TAG_SUFFIX};
pub use report::{ExportReport, FrozenReport, Listing, SetReport, State, VolumeReport};
pub use source::{CopyAreaFill, FillState, OnFullReport, Source, VolumeKind};
