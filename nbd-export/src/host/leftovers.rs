//! What killed agents left behind on this machine: found, and taken away.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use volmap::leftovers::{Finding, Leftover, LeftoverKind, clones_in, in_use, pages};

/// Something that was left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundLeftover {
    /// What it is.
    pub leftover: Leftover,
    /// What is there of it.
    pub finding: Finding,
}

impl FoundLeftover {
    /// What kind of thing it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self.leftover.kind {
            LeftoverKind::Clone => "clone",
            LeftoverKind::Immutable(_) => "immutable",
        }
    }
}

impl fmt::Display for FoundLeftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.leftover.path.display();
        match self.leftover.kind {
            LeftoverKind::Clone => write!(f, "the clone {path}"),
            LeftoverKind::Immutable(_) => write!(f, "the immutable flag (chattr +i) of {path}"),
        }
    }
}

/// What is written down in a state directory by agents that are dead, and the clones that lie in some directories. Nothing is changed
/// but records of what is gone by itself.
///
/// # Errors
/// A directory cannot be read, or nobody can tell what is in use.
pub fn leftovers(state: &Path, clone_dirs: &[PathBuf]) -> io::Result<Vec<FoundLeftover>> {
    let mut found = Vec::new();
    for page in pages(state)? {
        for leftover in page.leftovers() {
            found.push(look(leftover.clone())?);
        }
        page.cross_out(|leftover| {
            found
                .iter()
                .any(|found| found.leftover == *leftover && found.finding == Finding::Gone)
        })?;
    }
    found.retain(|found| found.finding != Finding::Gone);
    let mut unrecorded = Vec::new();
    for leftover in unrecorded_clones(state, clone_dirs)? {
        if !found.iter().any(|found| found.leftover.path == leftover.path) {
            unrecorded.push(look(leftover)?);
        }
    }
    found.extend(unrecorded);
    Ok(found)
}

/// Takes away what [`leftovers`] finds: each with what came of it, an error where it was not taken away.
///
/// # Errors
/// As [`leftovers`].
pub fn remove(state: &Path, clone_dirs: &[PathBuf]) -> io::Result<Vec<(FoundLeftover, io::Result<()>)>> {
    let mut removed: Vec<(FoundLeftover, io::Result<()>)> = Vec::new();
    for page in pages(state)? {
        let mut failed = None;
        page.cross_out(|leftover| match look(leftover.clone()) {
            Ok(found) if found.finding == Finding::Gone => true,
            Ok(found) => {
                let outcome = leftover.remove();
                let is_gone = outcome.is_ok();
                removed.push((found, outcome));
                is_gone
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    for leftover in unrecorded_clones(state, clone_dirs)? {
        if !removed
            .iter()
            .any(|(found, _)| found.leftover.path == leftover.path)
        {
            let found = look(leftover)?;
            let outcome = found.leftover.remove();
            removed.push((found, outcome));
        }
    }
    Ok(removed)
}

fn look(leftover: Leftover) -> io::Result<FoundLeftover> {
    Ok(FoundLeftover {
        finding: leftover.find()?,
        leftover,
    })
}

/// Clones in these directories that are on no page of a living agent.
fn unrecorded_clones(state: &Path, clone_dirs: &[PathBuf]) -> io::Result<Vec<Leftover>> {
    let used = in_use(state)?;
    let mut clones = Vec::new();
    for directory in clone_dirs {
        for clone in clones_in(directory)? {
            if !used.iter().chain(&clones).any(|known| known.path == clone.path) {
                clones.push(clone);
            }
        }
    }
    Ok(clones)
}
