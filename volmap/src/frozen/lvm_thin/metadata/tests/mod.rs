//! Metadata made by hand, to break one rule at a time, and by the tools that everybody uses, to agree with them.

mod builder;
mod flips;
mod oracle;
mod rules;

use builder::{Builder, Device, Memory};
