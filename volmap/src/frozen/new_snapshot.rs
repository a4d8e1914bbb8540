//! Logical volumes that are snapshots of ours, classic or thin: made for a frozen image, and removed with it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use uuid::Uuid;

use super::{FreezeError, Strength};
use crate::layers::file_system_on;
use crate::limits::{SNAPSHOT_MAKING_PATIENCE, SNAPSHOT_REMOVAL_PATIENCE, SNAPSHOT_REMOVAL_RETRY};
use crate::lvm::{LogicalVolume, LvKind, LvName, Lvm, LvmError};
use crate::sys::DeviceNumber;

/// What their names begin with; the frozen UUID follows.
pub(super) const PREFIX: &str = "volmap_";

/// The tag of them all: `lvs @volmap` shows them.
const TAG: &str = "volmap";

/// What the tag begins with that says on which machine one was made: a volume group may be seen by several.
const MACHINE_TAG: &str = "volmap.on.";

/// Where agents keep cleanups away from what they are at. Not on a disk: that could be one whose file system is frozen meanwhile.
pub(crate) const RUN_DIRECTORY: &str = "/run/volmap";

/// The file that is locked while snapshots are made and are not open yet.
const MAKING: &str = "making-snapshots";

/// Time between two tries to lock it.
const MAKING_LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The name of the snapshot of a frozen image. Without hyphens, which the device-mapper's names double.
fn name_of(origin: &LvName, frozen: Uuid) -> Option<LvName> {
    LvName::new(origin.group(), &format!("{PREFIX}{}", frozen.simple()))
}

/// The frozen image that a logical volume is the snapshot of, if it is one of ours.
pub(super) fn frozen_by(volume: &LogicalVolume) -> Option<Uuid> {
    let uuid = volume.name.volume().strip_prefix(PREFIX)?;
    let uuid = Uuid::try_parse(uuid).ok()?;
    volume.tags.iter().any(|tag| tag == TAG).then_some(uuid)
}

/// Whether a snapshot of ours was made on this machine.
pub(super) fn is_of_this_machine(volume: &LogicalVolume) -> bool {
    machine_tag().is_some_and(|ours| volume.tags.contains(&ours))
}

/// The tag of the snapshots of this machine, if it knows who it is.
fn machine_tag() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").ok()?;
    let id = Uuid::try_parse(id.trim()).ok()?;
    Some(format!("{MACHINE_TAG}{}", id.simple()))
}

/// Keeps cleanups away from what is being made. A cleanup has the lock for no longer than a look at it takes; but one may be stopped just
/// then, and a freeze that has run its hook cannot wait for that.
///
/// # Errors
/// `TimedOut`: a cleanup has it. Of the file system.
fn lock_making(directory: &Path, patience: Duration) -> io::Result<File> {
    let file = open_making(directory)?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{} stays locked: was an nbd-export cleanup stopped?",
                        directory.join(MAKING).display()
                    ),
                ));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(MAKING_LOOK_AGAIN),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Whether a snapshot may be in the making now, so that it is there and not open yet. Once none is, one that was there already is made
/// for good: nobody makes another of its name.
///
/// # Errors
/// Of the file system.
pub(super) fn is_making(directory: &Path) -> io::Result<bool> {
    match open_making(directory)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_making(directory: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(directory.join(MAKING))
}

/// Removes a snapshot. Readers that are still under way, and whoever looks at every new device, have it open for a moment: that is waited for.
///
/// # Errors
/// [`LvmError`]: it is still there.
pub(super) fn remove(lvm: &Lvm, name: &LvName) -> Result<(), LvmError> {
    let deadline = Instant::now() + SNAPSHOT_REMOVAL_PATIENCE;
    let text = name.to_string();
    loop {
        let Err(error) = lvm.change(&["lvremove", "--yes", &text]) else {
            return Ok(());
        };
        if matches!(lvm.volume(name), Ok(None)) {
            return Ok(());
        }
        if Instant::now() >= deadline || matches!(error, LvmError::LeftRunning { .. }) {
            return Err(error);
        }
        thread::sleep(SNAPSHOT_REMOVAL_RETRY);
    }
}

/// What is said of other block devices.
pub(crate) const NO_LOGICAL_VOLUME: &str = "it is no logical volume: serve it as an --origin with a --copy-area, or freeze it where it comes from \
     (--freeze static for what is frozen there)";

/// The logical volume behind an open device, of which `method` can make a snapshot.
///
/// # Errors
/// [`FreezeError::Unfit`], [`FreezeError::Map`], [`FreezeError::Lvm`].
pub(super) fn origin_behind(
    path: &Path,
    volume: &File,
    method: &'static str,
    fits: impl FnOnce(&LogicalVolume) -> Result<(), &'static str>,
) -> Result<(Lvm, LogicalVolume), FreezeError> {
    let unfit = |why| FreezeError::Unfit {
        path: path.to_owned(),
        method,
        why,
    };
    let metadata = volume.metadata().map_err(|source| FreezeError::Map {
        path: path.to_owned(),
        source,
    })?;
    let (lvm, origin) = Lvm::behind(DeviceNumber::from_stat(metadata.rdev()))
        .map_err(|source| by_lvm(path, source))?
        .ok_or_else(|| unfit(NO_LOGICAL_VOLUME))?;
    fits(&origin).map_err(unfit)?;
    warn_of_leftovers(&lvm, &origin.name);
    Ok((lvm, origin))
}

/// File systems of which it was tried that LVM's suspension leaves a snapshot in order: `ext4` without a journal to replay, `xfs` with a
/// log that holds nothing but its superblock.
const FROZEN_BY_LVM: [&str; 3] = ["ext3", "ext4", "xfs"];

/// What a snapshot of a logical volume that is made now is good for: LVM suspends the volume for it, and with that the kernel freezes a
/// file system that is mounted from it. One that it does not write to it calls frozen as it is, with all that is in its log only.
pub(crate) fn strength(volume: DeviceNumber) -> Strength {
    match file_system_on(volume) {
        Ok(Some(live)) if live.is_written && FROZEN_BY_LVM.contains(&live.kind.as_str()) => {
            Strength::FileSystem
        }
        _ => Strength::CrashConsistent,
    }
}

/// What LVM did not do with a volume.
fn by_lvm(path: &Path, source: LvmError) -> FreezeError {
    FreezeError::Lvm {
        path: path.to_owned(),
        source,
    }
}

/// Snapshots of killed agents take up room, and slow their origin down; but only the operator knows that nobody needs them.
fn warn_of_leftovers(lvm: &Lvm, origin: &LvName) {
    let volumes = match lvm.volumes_beside(origin) {
        Ok(volumes) => volumes,
        Err(error) => return tracing::debug!(%error, "cannot look for snapshots that were left"),
    };
    // An agent keeps its own open for as long as it lives.
    let is_left = |volume: &&LogicalVolume| frozen_by(volume).is_some() && !volume.open;
    for left in volumes.iter().filter(is_left) {
        let left = &left.name;
        tracing::warn!(
            "{left} was left by an agent that was killed, if no freeze is under way: nbd-export cleanup, or lvremove {left}"
        );
    }
}

/// A logical volume of which all is known that a snapshot needs: what is left is one command, for which writers may be waiting.
pub(crate) struct PreparedOrigin {
    lvm: Lvm,
    origin: LogicalVolume,
    kind: LvKind,
    arguments: Vec<String>,
}

impl PreparedOrigin {
    /// A volume, what its snapshot has to become, and the arguments that make it one.
    pub(super) fn new(lvm: Lvm, origin: LogicalVolume, kind: LvKind, arguments: Vec<String>) -> Self {
        Self {
            lvm,
            origin,
            kind,
            arguments,
        }
    }

    /// Whether its snapshot is a thin one.
    pub(crate) fn is_thin(&self) -> bool {
        self.kind == LvKind::Thin
    }

    /// Makes the snapshot.
    ///
    /// # Errors
    /// [`FreezeError::Lvm`]; nothing is left behind then, unless the error says so.
    pub(crate) fn take(self, path: &Path) -> Result<TakenSnapshot, FreezeError> {
        let uuid = Uuid::new_v4();
        // What was written before this is in the frozen image.
        let instant = SystemTime::now();
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let new = NewSnapshot::make(self.lvm, &self.origin, uuid, &arguments)
            .map_err(|source| by_lvm(path, source))?;
        Ok(TakenSnapshot {
            new,
            origin: self.origin.name,
            kind: self.kind,
            uuid,
            instant,
        })
    }
}

/// A snapshot that was taken, and that nobody has looked at yet. Removed when it is dropped.
pub(crate) struct TakenSnapshot {
    new: NewSnapshot,
    origin: LvName,
    kind: LvKind,
    uuid: Uuid,
    instant: SystemTime,
}

impl TakenSnapshot {
    /// The frozen image to be.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// When it was taken.
    pub(super) fn instant(&self) -> SystemTime {
        self.instant
    }

    /// Of a set: when all of it was.
    pub(crate) fn set_instant(&mut self, instant: SystemTime) {
        self.instant = instant;
    }

    /// What its bytes are good for.
    pub(super) fn strength(&self) -> Strength {
        self.new.strength
    }

    /// The snapshot and its device, if it is what it should be.
    ///
    /// # Errors
    /// [`FreezeError::Lvm`]; it is removed then.
    pub(super) fn into_snapshot(self, path: &Path) -> Result<(NewSnapshot, DeviceNumber), FreezeError> {
        let found = self.new.device(&self.origin, self.kind);
        let device = found.map_err(|source| by_lvm(path, source))?;
        Ok((self.new, device))
    }
}

fn not_made(origin: &LvName, why: &'static str) -> LvmError {
    LvmError::Report {
        command: format!("lvm lvcreate --snapshot {origin}"),
        why,
    }
}

/// A snapshot that we made. Removed when it is dropped.
pub(super) struct NewSnapshot {
    lvm: Lvm,
    name: LvName,
    removed: AtomicBool,
    strength: Strength,
    /// Held until it is open: from then on anybody sees that it is in use.
    making: Option<File>,
}

impl NewSnapshot {
    /// Makes a read-only snapshot of `origin`. LVM holds writers of the origin for it, and has a mounted file system write out what it holds
    /// and stand still meanwhile.
    ///
    /// # Errors
    /// [`LvmError`]. Nothing is left behind then, unless the error says so.
    fn make(lvm: Lvm, origin: &LogicalVolume, frozen: Uuid, more: &[&str]) -> Result<Self, LvmError> {
        let strength = || origin.device.map_or(Strength::CrashConsistent, strength);
        let before = strength();
        let origin = &origin.name;
        let name = name_of(origin, frozen).ok_or_else(|| not_made(origin, "the group's name is none"))?;
        let making = match lock_making(Path::new(RUN_DIRECTORY), SNAPSHOT_MAKING_PATIENCE) {
            Err(why) if why.kind() == io::ErrorKind::TimedOut => {
                return Err(LvmError::Run {
                    command: format!("lvm lvcreate --snapshot {origin}"),
                    why,
                });
            }
            locked => locked,
        };
        let making = making.inspect_err(|error| {
            tracing::warn!(%error, "a cleanup that comes in between could take the snapshot for one that was left");
        });
        // Dropped from here on, it is removed: a command that failed may have made it all the same.
        let mut new = Self {
            lvm,
            name,
            strength: before,
            removed: AtomicBool::new(false),
            making: making.ok(),
        };
        let origin_name = origin.to_string();
        let mut arguments = vec!["lvcreate", "--yes", "--snapshot", "--permission", "r"];
        arguments.extend(more);
        let machine = machine_tag();
        if let Some(machine) = &machine {
            arguments.extend(["--addtag", machine]);
        }
        arguments.extend(["--addtag", TAG, "--name", new.name.volume(), &origin_name]);
        let made = new.lvm.change(&arguments);
        if let Err(LvmError::LeftRunning { .. }) = made {
            // It has the group locked, and nothing could be removed now. The error names the snapshot.
            new.removed.store(true, Ordering::Release);
        }
        made?;
        // What was mounted meanwhile may not have been frozen.
        new.strength = before.min(strength());
        Ok(new)
    }

    /// Its device, if it is a read-only snapshot of `origin`, and of `kind`.
    fn device(&self, origin: &LvName, kind: LvKind) -> Result<DeviceNumber, LvmError> {
        let made = self.lvm.volume(&self.name)?;
        let made = made.ok_or_else(|| not_made(origin, "the new snapshot is not there"))?;
        if made.kind != kind || made.origin.as_deref() != Some(origin.volume()) || made.writable {
            return Err(not_made(
                origin,
                "the new logical volume is no read-only snapshot of it",
            ));
        }
        made.device
            .ok_or_else(|| not_made(origin, "the new snapshot is not active"))
    }

    /// Removes the snapshot; only the first call does. One that somebody else removed is removed.
    pub(super) fn remove(&self) {
        if self.removed.swap(true, Ordering::AcqRel) {
            return;
        }
        let name = &self.name;
        if let Err(error) = remove(&self.lvm, name) {
            tracing::error!(%error, "the snapshot {name} is left behind, and takes up more and more room: nbd-export cleanup, or lvremove {name}");
        }
    }
}

impl Drop for NewSnapshot {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A snapshot that we made, and what is held open of it: the numbers of its devices stay theirs for that long.
pub(super) struct OpenSnapshot<T> {
    /// `None` once it is removed.
    open: Mutex<Option<Arc<T>>>,
    new: NewSnapshot,
    removed: Once,
}

impl<T> OpenSnapshot<T> {
    /// A snapshot that was opened.
    pub(super) fn new(mut new: NewSnapshot, open: T) -> Self {
        new.making = None;
        Self {
            open: Mutex::new(Some(Arc::new(open))),
            new,
            removed: Once::new(),
        }
    }

    /// What is open of it.
    ///
    /// # Errors
    /// It was removed.
    pub(super) fn open(&self) -> io::Result<Arc<T>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clone()
            .ok_or_else(|| io::Error::other("the snapshot was removed"))
    }

    /// Closes and removes it, once; whoever comes second waits for that.
    pub(super) fn remove(&self) {
        self.removed.call_once(|| {
            // Closed first. Readers that are still under way keep it open for as long as they are, and removing waits for them.
            drop(self.open.lock().unwrap_or_else(PoisonError::into_inner).take());
            self.new.remove();
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One that an agent of this machine left.
    pub(in crate::frozen) fn snapshot_of_ours() -> LogicalVolume {
        let origin = LvName::new("vg", "db").unwrap();
        LogicalVolume {
            name: name_of(&origin, Uuid::from_u128(7)).unwrap(),
            uuid: "u".to_owned(),
            kind: LvKind::Snapshot,
            writable: false,
            size: 1 << 30,
            group_free: 0,
            tags: machine_tag().into_iter().chain([TAG.to_owned()]).collect(),
            device: Some(DeviceNumber { major: 253, minor: 7 }),
            open: false,
            origin: Some("db".to_owned()),
            pool: None,
        }
    }

    #[test]
    fn a_cleanup_keeps_away_from_what_is_being_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        let lock = || lock_making(&path, Duration::ZERO).unwrap();
        let making = (lock(), lock());
        assert!(is_making(&path).unwrap());
        drop(making);
        assert!(!is_making(&path).unwrap());
        assert!(!is_making(&path).unwrap(), "a look holds nobody up");
        lock();
    }

    #[test]
    fn a_freeze_does_not_wait_for_a_cleanup_that_was_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let stopped = open_making(directory.path()).unwrap();
        stopped.lock().unwrap();
        let refused = lock_making(directory.path(), Duration::from_millis(200)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert!(refused.to_string().contains("cleanup"), "{refused}");
        thread::scope(|scope| {
            let freeze = scope.spawn(|| lock_making(directory.path(), Duration::from_secs(60)));
            thread::sleep(Duration::from_millis(100));
            drop(stopped);
            freeze.join().unwrap().unwrap();
        });
    }
}
