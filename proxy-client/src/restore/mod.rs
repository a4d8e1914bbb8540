//! What a volume is restored to, and what keeps a restore from the wrong place.
//!
//! Invariants:
//! * nothing in use is written: not a mounted device, not a LUN that is being read, not a file that anybody has open;
//! * old data never survive where the volume has zeroes: they are skipped only in a file that was just created or emptied;
//! * a new file appears under its name only when the whole image proved good.

mod in_use;
pub(crate) mod signature;
mod target;

pub(crate) use target::Target;
