//! What a pinned frozen image holds on to, and how it notices that it slipped.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::Attestation;
use super::immutable::Immutable;
use crate::leftovers::Note;
use crate::sys::lease::{self, Held};
use crate::sys::{block_device, inode_flags};

/// Longer than a tick of any kernel's clock for inode times.
const CLOCK_TICK_MAX: Duration = Duration::from_millis(20);

/// A change time: seconds and nanoseconds.
type ChangeTime = (i64, i64);

/// What proves that nobody changes the bytes or their places, and is given back at the end.
pub(super) trait Hold: Send + Sync {
    /// Whether the bytes are certainly still the frozen ones, as far as anybody can know. Cheap.
    fn check_content(&self) -> Result<(), String>;

    /// Whether the bytes are certainly still where they were. Cheap.
    fn check_mapping(&self) -> Result<(), String>;

    /// Lets whoever waits for the file go on. The content is lost by this.
    fn let_openers_in(&self);

    /// Puts everything back as it was before the freeze; so does dropping the hold.
    fn end(&self);

    /// The file that is read.
    fn file(&self) -> &Arc<File>;

    /// Whether nobody will ever write to the file again, whatever becomes of this hold.
    fn is_for_ever(&self) -> bool;
}

/// A block device. Nothing proves that nobody writes to it; but it has to stay the same device, and where it was frozen *because*
/// it is read-only, it has to stay so.
#[derive(Debug)]
pub(super) struct DeviceHold {
    file: Arc<File>,
    read_only: bool,
    size: u64,
    /// `None` where the kernel keeps no count.
    sequence: Option<u64>,
}

impl DeviceHold {
    /// A device opened for this process alone, and whether it has to stay read-only.
    ///
    /// # Errors
    /// Of the `ioctl`s.
    pub(super) fn new(file: File, read_only: bool) -> io::Result<Self> {
        Ok(Self {
            read_only,
            size: block_device::size(&file)?,
            sequence: sequence(&file)?,
            file: Arc::new(file),
        })
    }
}

fn sequence(file: &File) -> io::Result<Option<u64>> {
    match block_device::disk_sequence(file) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTTY) => Ok(None),
        other => other.map(Some),
    }
}

impl Hold for DeviceHold {
    fn check_content(&self) -> Result<(), String> {
        let unreadable = |error: io::Error| format!("the device cannot be asked any more: {error}");
        if self.read_only && !block_device::is_read_only(&self.file).map_err(unreadable)? {
            Err("the device is not read-only any more".to_owned())
        } else if block_device::size(&self.file).map_err(unreadable)? != self.size {
            Err("the device has another size".to_owned())
        } else if sequence(&self.file).map_err(unreadable)? != self.sequence {
            Err("the device shows another disk or file".to_owned())
        } else {
            Ok(())
        }
    }

    fn check_mapping(&self) -> Result<(), String> {
        Ok(())
    }

    fn let_openers_in(&self) {}

    fn end(&self) {}

    fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn is_for_ever(&self) -> bool {
        false
    }
}

/// A file held by a read lease, and by `+i` where that is possible.
#[derive(Debug)]
pub(crate) struct FileHold {
    file: Arc<File>,
    /// Whether a lease is the witness of the content; without one, only the operator's word is.
    leased: bool,
    /// The change time since the file became immutable, where that is the witness of the mapping.
    pinned: Option<ChangeTime>,
    /// Our share in the flag of a file that is not ours.
    immutable: Option<Immutable>,
    /// A clone of ours, that goes with the frozen image.
    clone: Option<OwnedClone>,
    /// What says on disk that something has to be put back; crossed out once it was.
    note: Mutex<Option<Note>>,
    ended: Once,
}

/// A clone that we made.
#[derive(Debug)]
struct OwnedClone {
    path: PathBuf,
    made_immutable: bool,
}

impl FileHold {
    /// A file on which a read lease was taken.
    pub(super) fn leased(file: File) -> Self {
        Self {
            file: Arc::new(file),
            leased: true,
            pinned: None,
            immutable: None,
            clone: None,
            note: Mutex::new(None),
            ended: Once::new(),
        }
    }

    /// A file that nothing but the operator's word is known of.
    pub(super) fn without_lease(file: File) -> Self {
        let mut hold = Self::leased(file);
        hold.leased = false;
        hold
    }

    /// The clone at `path`, which we may have made immutable already, is removed at the end.
    pub(super) fn owns_clone(&mut self, path: PathBuf, made_immutable: bool, note: Option<Note>) {
        self.clone = Some(OwnedClone { path, made_immutable });
        self.note = Mutex::new(note);
    }

    /// Whether the file is a clone of ours.
    pub(super) fn is_clone(&self) -> bool {
        self.clone.is_some()
    }

    /// Whether a lease is held.
    pub(super) fn is_leased(&self) -> bool {
        self.leased
    }

    /// Who vouches that nobody changes it.
    pub(crate) fn attestation(&self) -> Attestation {
        if self.leased {
            Attestation::Witnessed
        } else {
            Attestation::Unattested
        }
    }

    /// Makes the file immutable, unless it is. `note` says so on disk, where it stays if the agent is killed.
    ///
    /// # Errors
    /// As [`inode_flags::set_immutable`].
    pub(super) fn make_immutable(&mut self, note: Option<Note>) -> io::Result<()> {
        if let Some(clone) = &mut self.clone {
            if !clone.made_immutable {
                inode_flags::set_immutable(&self.file, true)?;
                clone.made_immutable = true;
            }
            return Ok(());
        }
        self.immutable = Immutable::claim(&self.file)?;
        if self.immutable.is_some() {
            self.note = Mutex::new(note);
        }
        Ok(())
    }

    /// From here on the immutable flag and the change time are the witness of the mapping; ask for the map after this.
    ///
    /// # Errors
    /// `PermissionDenied`: the file is not immutable. Of `fstat`.
    pub(super) fn pin(&mut self) -> io::Result<()> {
        let changed = change_time(&self.file)?;
        // A flag that was taken away and set again in the tick of the clock in which we set it would leave no trace, so that tick
        // passes before the map is taken.
        let seconds = u64::try_from(changed.0).unwrap_or_default();
        let nanoseconds = u32::try_from(changed.1).unwrap_or_default();
        let settled = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds) + CLOCK_TICK_MAX;
        if let Ok(wait) = settled.duration_since(SystemTime::now()) {
            thread::sleep(wait.min(CLOCK_TICK_MAX));
        }
        if !inode_flags::get(&self.file)?.is_immutable() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // As it was before that tick passed: whatever was done since shows.
        self.pinned = Some(changed);
        Ok(())
    }

    fn release(&self) {
        if let Err(error) = lease::release(&self.file) {
            tracing::warn!(%error, "a lease could not be released; closing the file will");
        }
    }

    fn undo(&self) {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner).take();
        let undone = self.give_flag_back() & self.give_clone_back();
        match note {
            // It stands until somebody cleans up.
            Some(note) if !undone => note.keep(),
            note => drop(note),
        }
    }

    fn give_flag_back(&self) -> bool {
        let given = match (&self.immutable, &self.clone) {
            (Some(share), _) => share.give_back(&self.file),
            (None, Some(clone)) if clone.made_immutable => inode_flags::set_immutable(&self.file, false),
            _ => return true,
        };
        if let Err(error) = &given {
            tracing::warn!(%error, clone = ?self.clone, "an immutable flag could not be taken back: use chattr -i");
        }
        given.is_ok()
    }

    fn give_clone_back(&self) -> bool {
        let Some(OwnedClone { path, .. }) = &self.clone else {
            return true;
        };
        let removed = self.remove_clone(path);
        if let Err(error) = &removed {
            tracing::warn!(%error, clone = %path.display(), "a clone could not be removed: use chattr -i and rm");
        }
        removed.is_ok()
    }

    /// Removes the path only where it still is our file.
    fn remove_clone(&self, path: &Path) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::symlink_metadata(path)?);
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
            fs::remove_file(path)
        } else {
            Err(io::Error::other("another file has its name now"))
        }
    }
}

impl Hold for FileHold {
    fn check_content(&self) -> Result<(), String> {
        if !self.leased {
            return Ok(());
        }
        match lease::held(&self.file) {
            Ok(Held::Read) => Ok(()),
            Ok(_) => Err("somebody opened its file for writing, which broke the lease".to_owned()),
            Err(error) => Err(format!("the lease on its file cannot be asked for: {error}")),
        }
    }

    fn check_mapping(&self) -> Result<(), String> {
        let Some(pinned) = self.pinned else {
            return Ok(());
        };
        let unreadable = |error: io::Error| format!("its file cannot be asked any more: {error}");
        if !inode_flags::get(&self.file).map_err(unreadable)?.is_immutable() {
            Err("the immutable flag of its file was taken away".to_owned())
        } else if change_time(&self.file).map_err(unreadable)? != pinned {
            Err("its file was changed by somebody else (change time)".to_owned())
        } else {
            Ok(())
        }
    }

    /// Whoever took the flag off a clone of ours waits as long as the kernel lets him (`lease-break-time`): pages that were sent by
    /// reference may still be on their way.
    fn let_openers_in(&self) {
        if !self.is_for_ever() {
            self.release();
        }
    }

    fn end(&self) {
        self.ended.call_once(|| {
            self.undo();
            self.release();
        });
    }

    fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// A clone of ours that was immutable before the lease showed that nobody had it open for writing. It goes with this hold.
    fn is_for_ever(&self) -> bool {
        self.clone.is_some() && self.leased && self.pinned.is_some()
    }
}

impl Drop for FileHold {
    fn drop(&mut self) {
        self.end();
    }
}

fn change_time(file: &File) -> io::Result<ChangeTime> {
    let metadata = file.metadata()?;
    Ok((metadata.ctime(), metadata.ctime_nsec()))
}
