//! What an agent keeps: volumes, origins and tags by name, the frozen images made of them, and the control socket by
//! which an operator freezes, thaws and lists.
//!
//! Invariants:
//!
//! * one generation clock a process, so that no generation is used twice (law H3);
//! * an export name stands for one frozen image at a time, and a name is reserved before its freeze begins;
//! * a thawed frozen image is ended before its name is free again (law H6); where it is kept for incrementals, its export is;
//! * a frozen image is compared with those of its volume that were there before its freeze began, and with no others;
//! * a hook that was begun is followed by its last one, and a file system that was frozen is thawed, also when the agent is killed (`guardian`);
//! * no hook runs while another freeze is between its own (`turns`);
//! * the registry is never locked while a volume or frozen image is asked, which may take for ever.

mod around;
pub mod control;
mod freezing;
mod guardian;
mod holds;
mod kept;
mod leftovers;
mod on_request;
mod open;
mod registry;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod told;
mod turns;
mod under_way;
mod volume_set;
mod writable;

pub use around::Around;
pub use guardian::watch;
pub use kept::KEPT_MAX;
pub use leftovers::{FoundLeftover, LeftBehind, leftovers, lvm_leftovers, remove, remove_lvm};
pub use open::OriginSource;
pub use registry::{Host, TAG_SUFFIX};
pub use report::{ExportReport, FrozenReport, KeptReport, Listing, SetReport, State, VolumeReport};
pub use source::{CopyAreaFill, FillState, OnFullReport, Source, VolumeKind};
