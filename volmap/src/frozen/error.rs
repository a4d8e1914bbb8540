//! Why a volume was not frozen.

use std::io;
use std::path::PathBuf;

use super::FrozenError;
use crate::cow::CowError;
use crate::lvm::LvmError;

/// Why a volume was not frozen. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It cannot be opened, or is neither file nor block device.
    #[error("{path} cannot be opened as a volume: {source}")]
    Open {
        /// The volume.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody, likely an agent that serves it as an origin, holds a write lease that merely opening the file would break.
    #[error(
        "{path} is held for writing by another process, as an --origin is: end that first, or freeze the origin there"
    )]
    HeldForWriting {
        /// The volume.
        path: PathBuf,
    },
    /// A writer has the file open, so its bytes do not lie still.
    #[error(
        "{path} is open for writing elsewhere: end the writer (fuser -v {path} names it), or freeze by reflink on XFS, or serve it \
         as an --origin"
    )]
    WriterPresent {
        /// The volume.
        path: PathBuf,
    },
    /// A lease on the file is not allowed.
    #[error("{path} cannot be leased: run as its owner, or with CAP_LEASE")]
    LeaseNotAllowed {
        /// The volume.
        path: PathBuf,
    },
    /// Nothing would notice a writer, and the operator did not vouch that there is none.
    #[error(
        "nothing would notice a write to {path} ({why}): if nobody writes to it while it is frozen, say so with --assume-exclusive"
    )]
    NotWitnessed {
        /// The volume.
        path: PathBuf,
        /// Why it has no witness.
        why: &'static str,
    },
    /// A block device that is mounted, in a volume group, or otherwise claimed.
    #[error(
        "{path} is in use (mounted, or part of a volume group or an array): freeze a snapshot of it, or take it out of use first"
    )]
    DeviceInUse {
        /// The volume.
        path: PathBuf,
    },
    /// The file system cannot clone files.
    #[error(
        "{path} cannot be cloned: its file system has no reflinks (XFS has them when made with mkfs.xfs -m reflink=1)"
    )]
    CloneUnsupported {
        /// The volume.
        path: PathBuf,
    },
    /// The directory for clones is on another file system.
    #[error(
        "{path} cannot be cloned into {clone_dir}: a clone has to be on the same file system (--clone-dir)"
    )]
    CloneElsewhere {
        /// The volume.
        path: PathBuf,
        /// The directory.
        clone_dir: PathBuf,
    },
    /// Making the clone failed.
    #[error("cloning to {clone} failed: {source}")]
    Clone {
        /// The clone.
        clone: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The method is not for such volumes.
    #[error("{path} cannot be frozen by {method}: {why}")]
    Unfit {
        /// The volume.
        path: PathBuf,
        /// The method.
        method: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A volume of a set would not be of the instant of the others.
    #[error("{path} cannot be frozen at one instant with the others of its set: {why}")]
    Apart {
        /// The volume.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The file systems of a set were not frozen, or not to the end.
    #[error("the file systems of the set could not be held still: {0}")]
    NotStill(String),
    /// An origin of a set.
    #[error("the origin {path} cannot be frozen")]
    Origin {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: CowError,
    },
    /// The volume's flags or map cannot be read.
    #[error("{path} cannot be mapped: {source}")]
    Map {
        /// The volume.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// LVM did not do it, or did not tell.
    #[error("{path} cannot be frozen through LVM")]
    Lvm {
        /// The volume.
        path: PathBuf,
        /// Why.
        source: LvmError,
    },
    /// The volume group has no room for a snapshot.
    #[error(
        "{path} cannot be frozen by lvm-snapshot: the snapshot wants {wanted} bytes for what will be overwritten, and volume group \
         {group} has {free} left: ask for less with --snapshot-size, or extend the group (vgextend)"
    )]
    NoRoom {
        /// The volume.
        path: PathBuf,
        /// The volume group.
        group: String,
        /// Bytes that are free in it.
        free: u64,
        /// Bytes that the snapshot was to have.
        wanted: u64,
    },
    /// A thin pool that is nearly full, or in trouble.
    #[error("{path} cannot be frozen by lvm-thin: {why}")]
    Pool {
        /// The volume.
        path: PathBuf,
        /// What is the matter, and what can be done about it.
        why: String,
    },
    /// Somebody came in between.
    #[error("the freeze did not hold: {0}")]
    Slipped(#[from] FrozenError),
}
