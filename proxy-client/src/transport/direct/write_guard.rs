//! Devices that are set read-only in this kernel for as long as somebody here reads them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use volmap::sys::block_device;

/// Devices that we set read-only, with how many of our readers want them so: one of several jobs must not undo it for the others.
static GUARDED: Mutex<BTreeMap<u64, usize>> = Mutex::new(BTreeMap::new());

fn guarded() -> MutexGuard<'static, BTreeMap<u64, usize>> {
    GUARDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reader's share in a device being read-only.
pub(super) struct WriteGuard {
    device: u64,
    file: File,
}

/// Sets the device read-only in this kernel (BLKROSET), unless somebody here holds it: a mounted file system, LVM or md would
/// see its writes fail. `None` where it was so before, or cannot be: then it has not to be made writable again.
pub(super) fn guard_against_writes(path: &Path, file: &File, device: u64) -> Option<WriteGuard> {
    let unclaimed = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(path)
        .is_ok();
    if !unclaimed {
        tracing::warn!(lun = %path.display(), "the LUN is in use on this machine (mounted, LVM, md?); it is left writable");
        return None;
    }
    let guard = || -> io::Result<Option<WriteGuard>> {
        let file = file.try_clone()?;
        let mut guarded = guarded();
        match guarded.get_mut(&device) {
            Some(readers) => *readers += 1,
            None if block_device::is_read_only(&file)? => return Ok(None),
            None => {
                block_device::set_read_only(&file, true)?;
                guarded.insert(device, 1);
            }
        }
        Ok(Some(WriteGuard { device, file }))
    };
    guard().unwrap_or_else(|error| {
        tracing::debug!(lun = %path.display(), %error, "the LUN could not be set read-only");
        None
    })
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let mut guarded = guarded();
        let readers = guarded.get_mut(&self.device);
        if let Some(readers) = readers
            && *readers > 1
        {
            *readers -= 1;
            return;
        }
        guarded.remove(&self.device);
        if let Err(error) = block_device::set_read_only(&self.file, false) {
            tracing::warn!(%error, "the LUN stays read-only; blockdev --setrw changes that");
        }
    }
}
