//! Whether this machine keeps its hands off a LUN: what uses it here, what is about to, and how to stop that.
//!
//! A LUN belongs to its host. A file system that two kernels mount, a volume group that two machines activate, is lost; and what a
//! kernel has in its caches of a LUN that another one writes is of no use anyway.
//!
//! Invariants:
//!
//! * nothing is changed, not even for a moment: the LUN is looked at through procfs, sysfs, and opened for reading only;
//! * what the system does not tell is not taken for "unused": a LUN that cannot be opened exclusively is in use by somebody.

mod advice;
mod claims;
mod contents;
mod family;
mod finding;
mod mounts;
mod openers;
mod system;
mod twins;

pub use finding::{Finding, FindingKind, Severity};

use std::io;
use std::path::Path;

use family::Family;
use system::System;

/// Everything that is to be said of the LUN at `path`, the worst first.
///
/// # Errors
/// It cannot be looked at.
pub(crate) fn examine(path: &Path) -> io::Result<Vec<Finding>> {
    let system = System::live();
    let family = Family::of(&system, path)?;
    let mut findings = mounts::find(&system, &family);
    findings.extend(family.uses());
    findings.extend(claims::find(&family, !findings.is_empty()));
    findings.extend(twins::find(&system, &family));
    findings.extend(openers::find(&system, &family));
    findings.extend(contents::find(&system, &family, path));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}
