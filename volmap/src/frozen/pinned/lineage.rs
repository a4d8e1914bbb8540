//! What changed between two clones of ours.

use std::any::Any;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::{Inner, PinnedImage};
use crate::frozen::same_places::{self, Side};
use crate::frozen::{ChangedMap, FrozenImage, NoLineage};
use crate::layers::{FileExtents, Relocations, file_extents};
use crate::sys::file_system::{self, FileSystemType};
use crate::sys::inode_flags;

impl PinnedImage {
    /// What changed since `older`. Both have to be clones: a file that is held itself was not written to meanwhile, or is gone.
    pub(super) fn changes_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let older: &dyn Any = older;
        let older = older.downcast_ref::<Self>().ok_or(NoLineage::Unrelated)?;
        let (older, newer) = (&*older.0, &*self.0);
        let unreadable = |error: io::Error| NoLineage::Unreadable(error.to_string());
        for image in [older, newer] {
            if !image.tells_places().map_err(unreadable)? {
                return Err(NoLineage::NotTold(image.description.method));
            }
        }
        let device = |image: &Inner| Ok(image.hold.file().metadata()?.dev());
        if device(older).map_err(unreadable)? != device(newer).map_err(unreadable)? {
            // Places are those of a file system, and of no other one.
            return Err(NoLineage::Unrelated);
        }
        let compared = |image| Compared::from_now(image).map_err(NoLineage::Unreadable);
        same_places::compare(&compared(older)?, &compared(newer)?, newer.size)
    }

    /// Whether a later clone can be compared with it.
    pub(super) fn is_comparable(&self) -> bool {
        self.0.tells_places().unwrap_or(false) && self.0.is_what_it_was().is_ok()
    }
}

impl Inner {
    /// Whether it is a clone of ours that cannot be written to, in a file system where places are those of one device, and what is
    /// written to a shared place goes elsewhere.
    fn tells_places(&self) -> io::Result<bool> {
        let file = self.hold.file();
        Ok(self.hold.is_for_ever()
            && match file_system::of(file)?.kind {
                FileSystemType::Xfs => !inode_flags::is_realtime(file)?,
                FileSystemType::Btrfs => true,
                _ => false,
            })
    }

    /// Whether its bytes are the frozen ones, and nobody took away for a moment what keeps its extents as they are. Balances are no matter:
    /// what clones share is moved for all of them.
    fn is_what_it_was(&self) -> Result<(), String> {
        self.check_content().map_err(|error| error.to_string())?;
        self.hold.check_mapping()
    }
}

/// An image while it is compared.
struct Compared<'a> {
    image: &'a Inner,
    /// On btrfs a flag keeps nobody from moving extents.
    relocations: Option<Relocations>,
}

impl<'a> Compared<'a> {
    /// What happens from here on is noticed.
    fn from_now(image: &'a Inner) -> Result<Self, String> {
        let file = image.hold.file();
        let found = file_system::of(file).map_err(|error| error.to_string())?;
        let relocations = match found.kind {
            FileSystemType::Btrfs => Some(Relocations::watch(file)?),
            _ => None,
        };
        Ok(Self { image, relocations })
    }
}

impl Side for Compared<'_> {
    fn extents(&self) -> io::Result<FileExtents> {
        file_extents(self.image.hold.file(), self.image.size)
    }

    fn check(&self) -> Result<(), String> {
        self.image.is_what_it_was()?;
        self.relocations.as_ref().map_or(Ok(()), Relocations::check)
    }
}
