//! `cow`: our own copy-before-write. An origin is served read-write, with its frozen images beside it.
//!
//! It needs nothing from the kernel, and no root: every write to the origin comes through [`Origin`], which keeps the old
//! data first. Invariants (design.md section 5, docs/law.md):
//!
//! * WRITE, TRIM and WRITE_ZEROES alike: (1) the old data of every unit that the request touches is read and written to
//!   the copy area, and that has completed; (2) of each frozen image that needs it, in one critical section, the location of the
//!   unit switches to the copy area and its generation rises; (3) only when all have does the request go to the origin.
//! * One copy serves all frozen images that need it, and its slot is free when the last of them has ended.
//! * A unit moves once in the life of a frozen image, to a slot that is not written again while the image stands.
//! * While a frozen image lives, no block is given back to the file system.
//! * Trouble with the copy costs frozen images, or the writer's time where that was asked for, and never the writer's data.
//! * What is written between two freezes is marked behind the gate, before it is written.
//! * Origins are frozen together only if all their gates were shut at one time, and a gate is opened by its deadline whatever hangs. What was
//!   made behind a gate that is opened before the end is ended ahead of the first writer.
//! * A freeze waits for another one before it holds any writer. What may hang is done on threads of its own: the freeze ends at its deadline, and
//!   no more than two threads stay with an origin whose disks do not answer: one syncs it, one has its survey.
//!
//! The order of locks is surveys, gate, claims, the state of an image, slots; `preserve` says what each of them keeps.

mod claims;
mod copy_area;
mod deadline;
mod dirty;
mod error;
mod file_ground;
mod freezing;
mod frozen;
mod gate;
mod ground;
mod holding;
mod image;
mod lineage;
mod living;
mod moves;
mod origin;
mod preserve;
mod slots;
mod together;
mod unit;

#[cfg(test)]
pub(crate) mod tests;

pub use copy_area::CopyAreaSpec;
pub use error::CowError;
pub use file_ground::Storage;
pub use ground::{Ground, Survey, Witness};
pub use holding::OnFull;
pub use origin::{CopyAreaState, CopyOptions, Origin, OutOfBounds};
pub use slots::Fullness;
pub use together::{HeldOrigins, OneFailed};
pub use unit::CopyUnit;
