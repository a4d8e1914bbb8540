//! LVM, through its own commands: no library of it is stable, and nobody else may write its metadata.
//!
//! Invariants:
//!
//! * no shell: every argument is one argument, and names are checked before they become part of one ([`LvName`]);
//! * a command has a deadline. One that only asks is killed at it. One that changes something is asked to end and never killed:
//!   LVM holds signals off while devices are suspended, and what is killed there leaves them suspended for good;
//! * what a command wrote to standard error reaches the operator, whether it failed or not.

mod command;
mod error;
mod name;
mod report;
mod volume;

pub use command::Lvm;
pub use error::LvmError;
pub use name::LvName;
pub use volume::{LogicalVolume, LvKind};
