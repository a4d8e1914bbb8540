//! What an agent leaves behind when it is killed: clones, immutable flags on files that were quiesced, and things of LVM; and, when its
//! guardian is killed with it, file systems that are frozen.
//!
//! Each of these but LVM's is written down in the state directory *before* it is made, and crossed out after it is gone. The page of an agent,
//! or of a guardian, is locked for as long as that lives, which the kernel undoes however it ends; so what stands on an unlocked page is left over.
//!
//! Invariants:
//!
//! * nothing is removed that stands on the page of a living agent, or that anybody holds a lease on, nor a clone that anybody has open;
//! * nothing is removed that is not what was written down: a clone by its name, a file by its inode;
//! * a page is crossed out only when all on it is gone;
//! * nothing is written as long as a file system may be frozen that stands on a page: the state directory may lie in it;
//! * of LVM nothing is removed that was not made by an agent of this machine, that anybody has open, or that is just being made.

mod file_system;
mod ledger;
mod logical_volumes;
mod open_files;
mod record;
mod removal;

pub use file_system::FrozenFileSystem;
pub use ledger::{Ledger, Note, Page, WrittenDown, file_systems, in_use, pages};
pub use logical_volumes::LvmLeftover;
pub use record::{FileLeftover, Leftover, LeftoverKind};
pub use removal::{Finding, clones_in};
