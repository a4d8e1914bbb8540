//! What killed agents left behind on this machine: found, and taken away.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use volmap::leftovers::{
    FileLeftover, Finding, Leftover, LeftoverKind, LvmLeftover, clones_in, file_systems, in_use, pages,
};

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
    /// Something that was written down, or is told by its name.
    Recorded(Leftover),
    /// Something of LVM's.
    Lvm(LvmLeftover),
}

impl FoundLeftover {
    fn of(leftover: Leftover) -> io::Result<Self> {
        Ok(Self {
            finding: leftover.find()?,
            what: LeftBehind::Recorded(leftover),
        })
    }

    /// What kind of thing it is, in a word.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            LeftBehind::Recorded(Leftover::File(leftover)) => match leftover.kind {
                LeftoverKind::Clone => "clone",
                LeftoverKind::Immutable(_) => "immutable",
            },
            LeftBehind::Recorded(Leftover::FileSystem(_)) => "file-system",
            LeftBehind::Lvm(leftover) => leftover.kind(),
        }
    }

    /// Where it is, or what LVM calls it.
    pub fn path(&self) -> PathBuf {
        match &self.what {
            LeftBehind::Recorded(leftover) => leftover.path().to_owned(),
            LeftBehind::Lvm(leftover) => leftover.name().into(),
        }
    }

    /// The frozen image that it belongs to, where that is known.
    pub fn frozen(&self) -> Option<Uuid> {
        match &self.what {
            LeftBehind::Recorded(Leftover::File(leftover)) => Some(leftover.frozen),
            LeftBehind::Recorded(Leftover::FileSystem(_)) => None,
            LeftBehind::Lvm(leftover) => leftover.frozen(),
        }
    }

    fn is(&self, leftover: &Leftover) -> bool {
        matches!(&self.what, LeftBehind::Recorded(found) if found == leftover)
    }

    fn is_at(&self, path: &Path) -> bool {
        matches!(&self.what, LeftBehind::Recorded(Leftover::File(found)) if found.path == path)
    }
}

impl fmt::Display for FoundLeftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            LeftBehind::Recorded(Leftover::File(leftover)) => match leftover.kind {
                LeftoverKind::Clone => write!(f, "the clone {}", leftover.path.display()),
                LeftoverKind::Immutable(_) => {
                    write!(f, "the immutable flag (chattr +i) of {}", leftover.path.display())
                }
            },
            LeftBehind::Recorded(Leftover::FileSystem(file_system)) => {
                write!(
                    f,
                    "the freeze of the file system of {}",
                    file_system.path.display()
                )
            }
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
            LeftBehind::Recorded(leftover) => leftover.remove(),
        };
        (found, outcome)
    };
    Ok(lvm_leftovers()?.into_iter().map(removed).collect())
}

/// Thaws the file systems that dead guardians left frozen: each with what came of it. To be called before anything is written.
///
/// # Errors
/// The state directory cannot be read.
pub(super) fn thaw_file_systems(state: &Path) -> io::Result<Vec<(FoundLeftover, io::Result<()>)>> {
    let mut thawed = Vec::new();
    for file_system in file_systems(state)?.left {
        let found = FoundLeftover::of(Leftover::FileSystem(file_system.clone()))?;
        if found.finding != Finding::Gone {
            thawed.push((found, file_system.thaw()));
        }
    }
    if !thawed.is_empty()
        && !thawed.iter().any(may_be_frozen)
        && let Err(error) = cross_out_file_systems(state, &thawed)
    {
        // They are thawed all the same, and will be once more.
        tracing::warn!(%error, "what was thawed could not be crossed out");
    }
    Ok(thawed)
}

/// Crosses out the file systems of dead guardians but those that could not be thawed.
fn cross_out_file_systems(state: &Path, thawed: &[(FoundLeftover, io::Result<()>)]) -> io::Result<()> {
    for page in pages(state)? {
        page.cross_out(|leftover| {
            let failed = thawed
                .iter()
                .any(|(found, outcome)| found.is(leftover) && outcome.is_err());
            matches!(leftover, Leftover::FileSystem(_)) && !failed
        })?;
    }
    Ok(())
}

/// Whether a file system may be frozen that the next look may be able to thaw.
pub(super) fn some_may_come(state: &Path) -> bool {
    file_systems(state).is_ok_and(|written| written.held)
}

/// Whether to write would wait for it, for all that is known.
fn may_be_frozen((found, outcome): &(FoundLeftover, io::Result<()>)) -> bool {
    found.finding == Finding::There && outcome.is_err()
}

/// What is written down in a state directory by agents that are dead, and the clones that lie in some directories. Nothing is changed
/// but records of what is gone by itself. Where file systems may be frozen, it is these alone: to look for more would wait for them.
///
/// # Errors
/// A directory cannot be read, or nobody can tell what is in use.
pub fn leftovers(state: &Path, clone_dirs: &[PathBuf]) -> io::Result<Vec<FoundLeftover>> {
    let mut found = Vec::new();
    for file_system in file_systems(state)?.left {
        found.push(FoundLeftover::of(Leftover::FileSystem(file_system))?);
    }
    if found.iter().any(|found| found.finding == Finding::There) {
        return Ok(found);
    }
    found.clear();
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
            unrecorded.push(FoundLeftover::of(Leftover::File(leftover))?);
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
    let mut removed = thaw_file_systems(state)?;
    if removed.iter().any(may_be_frozen) {
        return Ok(removed);
    }
    for page in pages(state)? {
        let mut failed = None;
        page.cross_out(|leftover| match FoundLeftover::of(leftover.clone()) {
            // What is left of these could not be thawed.
            Ok(_) if matches!(leftover, Leftover::FileSystem(_)) => false,
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
            let found = FoundLeftover::of(Leftover::File(leftover.clone()))?;
            removed.push((found, leftover.remove()));
        }
    }
    Ok(removed)
}

/// Clones in these directories that are on no page of a living agent.
fn unrecorded_clones(state: &Path, clone_dirs: &[PathBuf]) -> io::Result<Vec<FileLeftover>> {
    let used = in_use(state)?;
    let mut clones = Vec::new();
    for directory in clone_dirs {
        for clone in clones_in(directory)? {
            let is_used = used.iter().any(|known| known.path() == clone.path);
            if !is_used && !clones.iter().any(|known: &FileLeftover| known.path == clone.path) {
                clones.push(clone);
            }
        }
    }
    Ok(clones)
}
