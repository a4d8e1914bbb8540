//! Snapshots of logical volumes that agents of this machine made and did not remove, because they were killed or the machine went down.
//! LVM's own metadata is what tells of them: their names and tags.

use std::io;
use std::path::Path;

use uuid::Uuid;

use super::new_snapshot::{self, PREFIX, frozen_by, is_making, is_of_this_machine};
use crate::leftovers::Finding;
use crate::lvm::{LogicalVolume, LvKind, LvName, Lvm, LvmError};

/// A snapshot of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LeftSnapshot {
    /// Its name.
    pub(crate) name: LvName,
    /// The frozen image that it was made for.
    pub(crate) frozen: Uuid,
}

impl LeftSnapshot {
    /// All snapshots of ours, those of living agents, too; [`LeftSnapshot::find`] tells which are left over.
    ///
    /// # Errors
    /// [`LvmError`].
    pub(crate) fn all() -> Result<Vec<Self>, LvmError> {
        let lvm = match Lvm::find() {
            Err(LvmError::Missing) => return Ok(Vec::new()),
            other => other?,
        };
        let ours = |volume: LogicalVolume| {
            Some(Self {
                frozen: frozen_by(&volume)?,
                name: volume.name,
            })
        };
        Ok(lvm.volumes_called(PREFIX)?.into_iter().filter_map(ours).collect())
    }

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// LVM, or the directory of the lock.
    pub(crate) fn find(&self, directory: &Path) -> io::Result<Finding> {
        let lvm = find_lvm()?;
        settled(|| self.look(&lvm), || is_making(directory))
    }

    /// Removes it, if it is [`Finding::There`] now.
    ///
    /// # Errors
    /// `ResourceBusy`: it is in use, or unclear. What LVM says.
    pub(crate) fn remove(&self, directory: &Path) -> io::Result<()> {
        let busy = |why: String| Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        let lvm = find_lvm()?;
        match settled(|| self.look(&lvm), || is_making(directory))? {
            Finding::Gone => Ok(()),
            Finding::There => new_snapshot::remove(&lvm, &self.name).map_err(io::Error::other),
            Finding::InUse => busy("it is in use".to_owned()),
            Finding::Unclear(why) => busy(why),
        }
    }

    fn look(&self, lvm: &Lvm) -> io::Result<Finding> {
        let volume = lvm.volume(&self.name).map_err(io::Error::other)?;
        Ok(volume.map_or(Finding::Gone, |volume| finding(&volume)))
    }
}

/// What a look finds of a snapshot that is not just being made. No lock is held over a look: LVM may take a minute for it, and a freeze
/// does not wait that long. One that was there before nobody made any is made, and was open from then on if an agent has it.
fn settled(
    look: impl Fn() -> io::Result<Finding>,
    is_making: impl FnOnce() -> io::Result<bool>,
) -> io::Result<Finding> {
    match look()? {
        Finding::There if is_making()? => Ok(Finding::InUse),
        Finding::There => look(),
        other => Ok(other),
    }
}

fn find_lvm() -> io::Result<Lvm> {
    Lvm::find().map_err(io::Error::other)
}

/// What a logical volume that has the name and the tag of one of ours is.
fn finding(volume: &LogicalVolume) -> Finding {
    let unclear = |why: &str| Finding::Unclear(why.to_owned());
    if frozen_by(volume).is_none() || !matches!(volume.kind, LvKind::Snapshot | LvKind::Thin) {
        return unclear("it is no snapshot of ours any more");
    }
    if volume.open {
        return Finding::InUse;
    }
    if !is_of_this_machine(volume) {
        return unclear("nothing says that it was made on this machine; if no other uses it: lvremove");
    }
    if volume.device.is_none() {
        // Machines that were copied from one another have one id. Where it was made it is active.
        return unclear(
            "it is not active here, so another machine with the same /etc/machine-id may have made it; if no other uses it: lvremove",
        );
    }
    if volume.writable {
        return unclear("somebody made it writable");
    }
    Finding::There
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::frozen::new_snapshot::tests::snapshot_of_ours;

    #[test]
    fn only_what_is_surely_left_is_there() {
        let ours = snapshot_of_ours();
        if !is_of_this_machine(&ours) {
            // Nothing here says which machine this is.
            assert!(matches!(finding(&ours), Finding::Unclear(_)));
            return;
        }
        assert_eq!(finding(&ours), Finding::There);
        let is_unclear = |change: fn(&mut LogicalVolume)| {
            let mut other = snapshot_of_ours();
            change(&mut other);
            matches!(finding(&other), Finding::Unclear(_))
        };
        assert!(is_unclear(|volume| volume.device = None), "another machine's");
        assert!(is_unclear(|volume| volume.tags.retain(|tag| tag == "volmap")));
        assert!(is_unclear(|volume| volume.tags.clear()));
        assert!(is_unclear(|volume| volume.writable = true));
        assert!(is_unclear(|volume| volume.kind = LvKind::Thick));
        let mut open = snapshot_of_ours();
        open.open = true;
        assert_eq!(finding(&open), Finding::InUse);
    }

    /// A snapshot that is there and not open, and is opened between the looks.
    #[test]
    fn what_was_just_made_is_in_use() {
        let (looks, found) = (Cell::new(0), Cell::new(Finding::There));
        let look = || {
            looks.set(looks.get() + 1);
            Ok(found.replace(Finding::InUse))
        };
        assert_eq!(settled(look, || Ok(false)).unwrap(), Finding::InUse);
        assert_eq!(looks.get(), 2);
        assert_eq!(
            settled(|| Ok(Finding::There), || Ok(true)).unwrap(),
            Finding::InUse
        );
        assert_eq!(
            settled(|| Ok(Finding::There), || Ok(false)).unwrap(),
            Finding::There
        );
    }
}
