//! The state directory: a page for each agent, a record for each thing on it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::file_system::FrozenFileSystem;
use super::record::Leftover;

/// The file that a living agent holds locked.
const LOCK: &str = "lock";

/// What a page or record is called while it is being made.
const UNFINISHED: &str = ".unfinished";

/// The page of this agent.
#[derive(Debug)]
pub struct Ledger {
    page: PathBuf,
    /// Locked until the process ends, however it does.
    _lock: File,
}

/// A record that stands until it is dropped.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    kept: bool,
    /// The page may go only after its records.
    _ledger: Arc<Ledger>,
}

impl Ledger {
    /// Begins a page in a state directory, which is made where it is not there.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(state: &Path) -> io::Result<Arc<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(state)?;
        let name = Uuid::new_v4().to_string();
        // Under its name only once it is locked: whoever finds it unlocked may take it for left over.
        let unfinished = state.join(format!("{name}{UNFINISHED}"));
        DirBuilder::new().mode(0o700).create(&unfinished)?;
        let lock = new_file(&unfinished.join(LOCK))?;
        lock.lock()?;
        let page = state.join(name);
        fs::rename(&unfinished, &page)?;
        sync_directory(state)?;
        Ok(Arc::new(Self { page, _lock: lock }))
    }

    /// Writes down what is about to be made. At the return that is on stable storage.
    ///
    /// # Errors
    /// Of the file system.
    pub fn note(self: &Arc<Self>, leftover: &Leftover) -> io::Result<Note> {
        let name = Uuid::new_v4().to_string();
        let unfinished = self.page.join(format!("{name}{UNFINISHED}"));
        let path = self.page.join(name);
        let mut file = new_file(&unfinished)?;
        let written = file
            .write_all(leftover.to_text().as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&unfinished, &path));
        if let Err(error) = written {
            // What is unfinished is no record.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        sync_directory(&self.page)?;
        Ok(Note {
            path,
            kept: false,
            _ledger: Arc::clone(self),
        })
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.page.join(LOCK));
        // Records that were kept keep the page, unlocked.
        let _ = fs::remove_dir(&self.page);
    }
}

impl Note {
    /// Leaves the record: what it names could not be removed.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, record = %self.path.display(), "what is gone could not be crossed out");
        }
    }
}

/// The page of an agent that is dead. Locked, so that one cleans up at a time.
#[derive(Debug)]
pub struct Page {
    directory: PathBuf,
    records: Vec<(PathBuf, Leftover)>,
    /// Files on it that are no records.
    unreadable: usize,
    _lock: File,
}

/// File systems that are written down as those that may be frozen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WrittenDown {
    /// By guardians that are dead: nobody else thaws these.
    pub left: Vec<FrozenFileSystem>,
    /// Whether any is by a guardian that lives, or that was killed and waits for a freeze to come to its end, which keeps it.
    pub held: bool,
}

/// The file systems that may be frozen. Nothing is written, so this does not wait for them. A page that cannot be read is passed over.
///
/// # Errors
/// The state directory cannot be read.
pub fn file_systems(state: &Path) -> io::Result<WrittenDown> {
    let mut found = WrittenDown::default();
    for directory in page_directories(state)? {
        let file_systems = records_in(&directory).filter_map(|leftover| match leftover {
            Leftover::FileSystem(file_system) => Some(file_system),
            Leftover::File(_) => None,
        });
        let file_systems: Vec<_> = file_systems.collect();
        if file_systems.is_empty() {
            continue;
        }
        match File::open(directory.join(LOCK)).and_then(|lock| is_free(&lock)) {
            Ok(true) => found.left.extend(file_systems),
            Ok(false) => found.held = true,
            // It was crossed out meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, page = %directory.display(), "what is written down there cannot be told")
            }
        }
    }
    Ok(found)
}

/// The pages of dead agents in a state directory. One that is not there has none.
///
/// # Errors
/// Of the file system.
pub fn pages(state: &Path) -> io::Result<Vec<Page>> {
    let mut dead = Vec::new();
    for directory in page_directories(state)? {
        if let Some(lock) = lock_of_a_dead_agent(&directory)? {
            dead.push(Page::read(directory, lock)?);
        }
    }
    Ok(dead)
}

/// What living agents have written down.
///
/// # Errors
/// Of the file system.
pub fn in_use(state: &Path) -> io::Result<Vec<Leftover>> {
    let mut used = Vec::new();
    for directory in page_directories(state)? {
        if lock_of_a_dead_agent(&directory)?.is_none() {
            used.extend(records_in(&directory));
        }
    }
    Ok(used)
}

/// What stands on a page; what vanishes meanwhile does not.
fn records_in(page: &Path) -> impl Iterator<Item = Leftover> {
    let entries = fs::read_dir(page).into_iter().flatten().flatten();
    entries.filter_map(|entry| Leftover::parse(&fs::read_to_string(entry.path()).ok()?))
}

fn page_directories(state: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        // One that is being begun holds nothing yet.
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| Uuid::try_parse(name).is_ok())
            && entry.file_type()?.is_dir()
        {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The lock of a page, taken; `None` where its agent lives, or somebody else cleans up, or it is gone by now.
fn lock_of_a_dead_agent(page: &Path) -> io::Result<Option<File>> {
    // An agent that ended while records were kept took its lock file with it.
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(page.join(LOCK));
    let lock = match lock {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    Ok(is_free(&lock)?.then_some(lock))
}

/// Takes a lock, if nobody has it.
fn is_free(lock: &File) -> io::Result<bool> {
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Page {
    fn read(directory: PathBuf, lock: File) -> io::Result<Self> {
        let mut page = Self {
            directory,
            records: Vec::new(),
            unreadable: 0,
            _lock: lock,
        };
        for entry in fs::read_dir(&page.directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == LOCK) {
                continue;
            }
            match fs::read_to_string(&path)
                .ok()
                .and_then(|text| Leftover::parse(&text))
            {
                // What was being written down was not made yet.
                _ if path.to_string_lossy().ends_with(UNFINISHED) => fs::remove_file(&path)?,
                Some(leftover) => page.records.push((path, leftover)),
                None => page.unreadable += 1,
            }
        }
        page.records.sort_by(|a, b| a.1.path().cmp(b.1.path()));
        Ok(page)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What stands on it.
    pub fn leftovers(&self) -> impl Iterator<Item = &Leftover> {
        self.records.iter().map(|(_, leftover)| leftover)
    }

    /// Files on it that cannot be read as records; the page stays because of them.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Crosses out what is gone, and the whole page where nothing else stands on it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn cross_out(mut self, mut gone: impl FnMut(&Leftover) -> bool) -> io::Result<()> {
        let mut kept = Vec::new();
        for (path, leftover) in std::mem::take(&mut self.records) {
            if gone(&leftover) {
                fs::remove_file(&path)?;
            } else {
                kept.push(path);
            }
        }
        if kept.is_empty() && self.unreadable == 0 {
            fs::remove_file(self.directory.join(LOCK))?;
            fs::remove_dir(&self.directory)?;
        }
        Ok(())
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// What was made or renamed in a directory is there after a power failure, too.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::record::{FileLeftover, LeftoverKind};
    use super::*;

    fn clone_at(path: &str) -> Leftover {
        Leftover::File(FileLeftover {
            kind: LeftoverKind::Clone,
            path: path.into(),
            directory: 2,
            frozen: Uuid::from_u128(7),
        })
    }

    #[test]
    fn what_a_living_agent_wrote_down_is_nobody_elses() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().join("made/on/demand");
        assert!(pages(&state).unwrap().is_empty());
        let ledger = Ledger::open(&state).unwrap();
        let note = ledger.note(&clone_at("/a")).unwrap();
        assert!(pages(&state).unwrap().is_empty(), "it lives");
        assert_eq!(in_use(&state).unwrap(), [clone_at("/a")]);

        note.keep();
        drop(ledger);
        let found = pages(&state).unwrap().pop().unwrap();
        assert_eq!(found.leftovers().collect::<Vec<_>>(), [&clone_at("/a")]);
        assert!(pages(&state).unwrap().is_empty(), "one cleans up at a time");
        found.cross_out(|_| false).unwrap();
        let found = pages(&state).unwrap().pop().unwrap();
        found.cross_out(|leftover| *leftover == clone_at("/a")).unwrap();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }

    #[test]
    fn file_systems_are_those_of_the_dead_alone() {
        let state = tempfile::tempdir().unwrap();
        let none = file_systems(&state.path().join("none")).unwrap();
        assert_eq!(none, WrittenDown::default());
        // Not a page.
        fs::write(state.path().join(Uuid::new_v4().to_string()), "").unwrap();
        let root = FrozenFileSystem::of(&File::open("/").unwrap()).unwrap();
        let ledger = Ledger::open(state.path()).unwrap();
        let notes = [
            ledger.note(&clone_at("/a")).unwrap(),
            ledger.note(&Leftover::FileSystem(root.clone())).unwrap(),
        ];
        let living = file_systems(state.path()).unwrap();
        assert!(living.left.is_empty() && living.held);
        // As a process does that is killed.
        let page = ledger.page.clone();
        let copy = state.path().join(Uuid::new_v4().to_string());
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(page).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        drop((notes, ledger));
        let dead = file_systems(state.path()).unwrap();
        assert_eq!((dead.left, dead.held), (vec![root], false));
    }

    #[test]
    fn an_agent_that_left_nothing_leaves_no_page() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path()).unwrap();
        drop(ledger.note(&clone_at("/a")).unwrap());
        drop(ledger);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_cannot_be_read_keeps_its_page() {
        let state = tempfile::tempdir().unwrap();
        let page = state.path().join(Uuid::new_v4().to_string());
        fs::create_dir(&page).unwrap();
        fs::write(page.join("x"), "of a later version").unwrap();
        fs::write(page.join("y.unfinished"), "").unwrap();
        let found = pages(state.path()).unwrap().pop().unwrap();
        assert_eq!((found.unreadable(), found.leftovers().count()), (1, 0));
        found.cross_out(|_| true).unwrap();
        assert!(page.join("x").exists() && !page.join("y.unfinished").exists());
    }
}
