//! What killed agents left behind on this machine: found, and taken away.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use volmap::leftovers::{Finding, Leftover, LeftoverKind, LvmLeftover, clones_in, in_use, pages};

/// Something that was left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundLeftover {
    /// What it is.
    pub what: LeftBehind,
    /// What is there of it.
    pub finding: Finding,
}

/// What can be left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeftBehind {
    /// A file, or a flag of one.
    File(Leftover),
    /// Something of LVM's.
    Lvm(LvmLeftover),
}

impl FoundLeftover {
    fn of(leftover: Leftover) -> io::Result<Self> {
        Ok(Self {
            finding: leftover.find()?,
            what: LeftBehind::File(leftover),
        })
    }

    /// What kind of thing it is, in a word.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            LeftBehind::File(leftover) => match leftover.kind {
                LeftoverKind::Clone => "clone",
                LeftoverKind::Immutable(_) => "immutable",
            },
            LeftBehind::Lvm(leftover) => leftover.kind(),
        }
    }

    /// Where it is, or what LVM calls it.
    pub fn path(&self) -> PathBuf {
        match &self.what {
            LeftBehind::File(leftover) => leftover.path.clone(),
            LeftBehind::Lvm(leftover) => leftover.name().into(),
        }
    }

    /// The frozen image that it belongs to, where that is known.
    pub fn frozen(&self) -> Option<Uuid> {
        match &self.what {
            LeftBehind::File(leftover) => Some(leftover.frozen),
            LeftBehind::Lvm(leftover) => leftover.frozen(),
        }
    }

    fn is(&self, leftover: &Leftover) -> bool {
        matches!(&self.what, LeftBehind::File(found) if found == leftover)
    }

    fn is_at(&self, path: &Path) -> bool {
        matches!(&self.what, LeftBehind::File(found) if found.path == path)
    }
}

impl fmt::Display for FoundLeftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            LeftBehind::File(leftover) => match leftover.kind {
                LeftoverKind::Clone => write!(f, "the clone {}", leftover.path.display()),
                LeftoverKind::Immutable(_) => {
                    write!(f, "the immutable flag (chattr +i) of {}", leftover.path.display())
                }
            },
            LeftBehind::Lvm(leftover) => leftover.fmt(f),
        }
    }
}

/// What is there of LVM's that no living agent has.
///
/// # Errors
/// LVM or the device-mapper does not tell; `PermissionDenied`: not root.
pub fn lvm_leftovers() -> io::Result<Vec<FoundLeftover>> {
    let mut found = Vec::new();
    for leftover in LvmLeftover::all()? {
        let finding = leftover.find()?;
        if !matches!(finding, Finding::Gone | Finding::InUse) {
            found.push(FoundLeftover {
                finding,
                what: LeftBehind::Lvm(leftover),
            });
        }
    }
    Ok(found)
}

/// Takes away what [`lvm_leftovers`] finds: each with what came of it.
///
/// # Errors
/// As [`lvm_leftovers`].
pub fn remove_lvm() -> io::Result<Vec<(FoundLeftover, io::Result<()>)>> {
    let removed = |found: FoundLeftover| {
        let outcome = match &found.what {
            LeftBehind::Lvm(leftover) => leftover.remove(),
            LeftBehind::File(leftover) => leftover.remove(),
        };
        (found, outcome)
    };
    Ok(lvm_leftovers()?.into_iter().map(removed).collect())
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
            found.push(FoundLeftover::of(leftover.clone())?);
        }
        page.cross_out(|leftover| {
            found
                .iter()
                .any(|found| found.is(leftover) && found.finding == Finding::Gone)
        })?;
    }
    found.retain(|found| found.finding != Finding::Gone);
    let mut unrecorded = Vec::new();
    for leftover in unrecorded_clones(state, clone_dirs)? {
        if !found.iter().any(|found| found.is_at(&leftover.path)) {
            unrecorded.push(FoundLeftover::of(leftover)?);
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
        page.cross_out(|leftover| match FoundLeftover::of(leftover.clone()) {
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
        if !removed.iter().any(|(found, _)| found.is_at(&leftover.path)) {
            let found = FoundLeftover::of(leftover.clone())?;
            removed.push((found, leftover.remove()));
        }
    }
    Ok(removed)
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
