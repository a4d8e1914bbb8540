//! Several volumes, frozen at one instant.
//!
//! Providers freeze one volume each, so a set would have as many instants as volumes, unless every volume is *held still* from before the
//! first is taken until after the last. A moment at which all are held still is the instant of the set, and the time in which any is
//! held still for it is its window. What holds a volume still:
//!
//! * a file: a read lease, which is refused while there is a writer;
//! * a file that has writers, on XFS: its clone is taken while they go on, then its file system is frozen (FIFREEZE), and what the file
//!   became since is read and put into the clone after the thaw (`patch`). Clones cannot be made while the file system is frozen;
//! * a block device with a mounted file system: that is frozen, and the provider takes the device meanwhile;
//! * a read-only device: the kernel;
//! * an origin under copy-before-write: every write to it passes this process, which lets none in;
//! * else a hook that has stopped whatever writes, or the operator's word. Without either the set is refused.
//!
//! Invariants:
//!
//! * the map of nothing is taken before everything is held;
//! * writers of origins go on when all else stands still, and at their deadline in any case, which costs the freeze;
//! * leases are looked at after the last volume was taken, so that nobody came in between;
//! * a file system that did not stay frozen to the end of the window costs the whole freeze;
//! * where it fails, nothing is held and nothing is left behind.

mod freeze;
mod member;
mod mounts;
mod origins;
mod patch;

pub use freeze::{HeldSet, PreparedSet, SetImage, prepare};
pub use origins::SetOrigin;

use std::fs::File;

/// What held a volume still while its set was frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeldBy {
    /// Nothing had to: it is the only one.
    Alone,
    /// A lease: there was no writer.
    Lease,
    /// Its file system was frozen.
    FileSystem,
    /// The kernel takes no writes to it.
    ReadOnly,
    /// This process, through which all writes go.
    Agent,
    /// The command that ran before the freeze.
    Hook,
    /// The operator's word (`--assume-exclusive`).
    Operator,
}

/// File systems that are held still for a short time, and thawed whatever becomes of this process.
pub trait FileSystems {
    /// Does ahead of time, while nobody waits, what [`FileSystems::freeze`] needs.
    ///
    /// # Errors
    /// Why not, for people: nothing can be frozen.
    fn get_ready(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Freezes the file systems that these files or directories lie in, each once. None is frozen after an error.
    ///
    /// # Errors
    /// Why not, for people.
    fn freeze(&mut self, on: &[&File]) -> Result<(), String>;

    /// Thaws what [`FileSystems::freeze`] froze.
    ///
    /// # Errors
    /// They were not frozen all the time: the deadline passed, or somebody else thawed them.
    fn thaw(&mut self) -> Result<(), String>;
}
