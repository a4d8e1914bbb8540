//! `cow`: our own copy-before-write. An origin is served read-write, with a frozen image beside it.
//!
//! It needs nothing from the kernel, and no root: every write to the origin comes through [`Origin`], which keeps the old
//! data first. Invariants (design.md section 5, docs/law.md):
//!
//! * WRITE, TRIM and WRITE_ZEROES alike: (1) the old data of every unit that the request touches is read and written to
//!   the copy area, and that has completed; (2) in one critical section the location of the unit switches to the
//!   copy area and its generation rises; (3) only then does the request go to the origin.
//! * A unit moves once in the life of a frozen image, to a slot that is written once.
//! * While a frozen image lives, no block is given back to the file system.
//! * Trouble with the copy costs the frozen image, never the writer.
//!
//! The order of locks is gate, claims, state; `preserve` says what each of them keeps.

mod copy_area;
mod error;
mod file_ground;
mod frozen;
mod ground;
mod image;
mod moves;
mod origin;
mod preserve;

#[cfg(test)]
mod tests;

pub use copy_area::CopyAreaSpec;
pub use error::CowError;
pub use file_ground::Storage;
pub use ground::{Ground, Survey, Witness};
pub use origin::{CopyAreaUse, Origin, OutOfBounds};
