//! Guests: User-Mode Linux kernels on this machine's own userland, with a real device-mapper, LVM, nbd and iSCSI, whose disks are
//! files that a proxy outside reads as the LUN; and QEMU where disks are to have names of their own. What they are made of is in
//! `tests/rig`; its README tells how to boot one by hand.
//!
//! A guest lives no longer than the thread that booted it: it ends when it is dropped, when the thread panics, when the test is
//! killed, and at its deadline. Nothing is left of it: its processes are in a PID namespace, its network in a network namespace.

mod booted;
mod link;
mod machine;
mod process;
mod qemu;
mod rig;

pub use booted::Guest;
pub use process::{Output, Process};
pub use qemu::{Bus, VirtualDisk};
pub use rig::{Rig, Setup};
