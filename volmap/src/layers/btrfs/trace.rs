//! What btrfs leaves behind when it moves something.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

use uuid::Uuid;

use super::chunk::Chunk;
use crate::layers::sysfs::Sysfs;
use crate::sys::DeviceNumber;
use crate::sys::btrfs::{self, DeviceInfo, Item, Key, Subvolume};

/// Trees and kinds of items (`btrfs_tree.h`).
const CHUNK_TREE: u64 = 3;
const DEVICE_TREE: u64 = 4;
/// Each relocation, whatever for, makes an inode there before it moves anything. Nothing else does.
const DATA_RELOCATION_TREE: u64 = 9_u64.wrapping_neg();
const CHUNKS: u64 = 256;
const CHUNK_ITEM: u8 = 228;
const EXTENT_DATA: u8 = 108;
const DEVICE_REPLACE: u8 = 250;

/// No balance, no removal, replacement or resizing of a device.
const NOTHING_RUNS: &str = "none";

/// A device, as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) info: DeviceInfo,
    pub(super) node: DeviceNumber,
}

/// What a map of a file was made from; and whether all of it is still so.
#[derive(Debug)]
pub(in crate::layers) struct Trace {
    file: File,
    sysfs: Sysfs,
    uuid: Uuid,
    inode: u64,
    subvolume: Subvolume,
    /// Committed before the map was taken, with all that was changed before: what is newer, was changed since.
    transaction: u64,
    chunks: Vec<Chunk>,
    members: Vec<Member>,
    replacement: Vec<u8>,
}

impl Trace {
    /// Commits the file system, and remembers how it is then. Whatever is mapped has to be mapped after this.
    ///
    /// # Errors
    /// `PermissionDenied`: not root. Of the file system.
    pub(super) fn begin(file: &File, sysfs: &Sysfs, uuid: Uuid) -> io::Result<Self> {
        file.sync_all()?;
        let mut trace = Self {
            file: file.try_clone()?,
            sysfs: sysfs.clone(),
            uuid,
            inode: file.metadata()?.ino(),
            transaction: btrfs::commit(file)?,
            subvolume: btrfs::subvolume(file)?,
            chunks: chunks(file)?,
            members: Vec::new(),
            replacement: replacement(file)?,
        };
        let numbers: BTreeSet<u64> = trace
            .chunks
            .iter()
            .flat_map(|chunk| chunk.devices().map(|(number, _)| number))
            .collect();
        for number in numbers {
            trace.members.extend(member(file, number)?);
        }
        Ok(trace)
    }

    /// Chunks that hold the bytes of files, in order.
    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Devices that are there.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether nothing can be changed in the subvolume, so that no immutable flag is needed.
    pub(super) fn is_read_only(&self) -> bool {
        self.subvolume.read_only
    }

    /// Whether something runs that moves extents.
    ///
    /// # Errors
    /// What runs, or that nobody knows.
    pub(super) fn check_idle(&self) -> Result<(), String> {
        match self.sysfs.exclusive_operation(self.uuid) {
            Ok(operation) if operation == NOTHING_RUNS => Ok(()),
            Ok(operation) => Err(format!(
                "its btrfs is busy with '{operation}', which moves extents"
            )),
            Err(error) => Err(format!(
                "whether its btrfs moves extents cannot be found out: {error}"
            )),
        }
    }

    /// Looks at everything again.
    ///
    /// # Errors
    /// Why the map holds no more.
    pub(in crate::layers) fn check(&self) -> Result<(), String> {
        self.check_idle()?;
        let unreadable = |error: io::Error| format!("its btrfs cannot be asked any more: {error}");
        if self.is_relocated().map_err(unreadable)? {
            return Err("its btrfs moved extents (balance, or removal of a device)".to_owned());
        }
        if self.is_rewritten().map_err(unreadable)? {
            return Err("its extents were moved by btrfs (defragmentation)".to_owned());
        }
        let subvolume = btrfs::subvolume(&self.file).map_err(unreadable)?;
        if self.subvolume.read_only && subvolume != self.subvolume {
            return Err("its btrfs snapshot was changed".to_owned());
        }
        if self.is_dealt_out_anew().map_err(unreadable)?
            || replacement(&self.file).map_err(unreadable)? != self.replacement
        {
            return Err("its btrfs lies on its devices in another way".to_owned());
        }
        for then in &self.members {
            if member(&self.file, then.info.number).map_err(unreadable)?.as_ref() != Some(then) {
                let path = then.info.path.display();
                return Err(format!(
                    "{path} is not the device of its btrfs any more that it was"
                ));
            }
        }
        Ok(())
    }

    /// Whether a relocation of anything began.
    fn is_relocated(&self) -> io::Result<bool> {
        self.any_newer(DATA_RELOCATION_TREE, Key::FIRST, Key::LAST, |_| true)
    }

    /// Whether the file has extents that were made since. A leaf may be new because of a neighbour.
    fn is_rewritten(&self) -> io::Result<bool> {
        let key = |offset| Key {
            object: self.inode,
            kind: EXTENT_DATA,
            offset,
        };
        let is_new = |item: &[u8]| {
            // Begins with the transaction that made it.
            item.first_chunk()
                .is_none_or(|made| u64::from_le_bytes(*made) > self.transaction)
        };
        self.any_newer(self.subvolume.tree, key(0), key(u64::MAX), is_new)
    }

    /// Whether a chunk lies elsewhere now, or is there no more.
    fn is_dealt_out_anew(&self) -> io::Result<bool> {
        if !self.any_newer(CHUNK_TREE, Key::FIRST, Key::LAST, |_| true)? {
            return Ok(false);
        }
        // A new chunk, or the size of a device, is no matter.
        let now = chunks(&self.file)?;
        let stands = |chunk: &Chunk| {
            let at = now.binary_search_by_key(&chunk.range.start(), |other| other.range.start());
            at.is_ok_and(|at| now[at] == *chunk)
        };
        Ok(!self.chunks.iter().all(stands))
    }

    fn any_newer(
        &self,
        tree: u64,
        first: Key,
        last: Key,
        counts: impl Fn(&[u8]) -> bool,
    ) -> io::Result<bool> {
        let mut found = false;
        btrfs::search(&self.file, tree, first, last, Some(self.transaction), |item| {
            found |= counts(item.data);
            if found {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(found)
    }
}

/// All chunks that hold data.
fn chunks(file: &File) -> io::Result<Vec<Chunk>> {
    let key = |offset| Key {
        object: CHUNKS,
        kind: CHUNK_ITEM,
        offset,
    };
    let mut chunks = Vec::new();
    let mut unreadable = false;
    btrfs::search(
        file,
        CHUNK_TREE,
        key(0),
        key(u64::MAX),
        None,
        |Item { key, data }| {
            match Chunk::parse(key.offset, data) {
                Some(chunk) if chunk.holds_data() => chunks.push(chunk),
                Some(_) => {}
                None => unreadable = true,
            }
            ControlFlow::Continue(())
        },
    )?;
    if unreadable {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a chunk that cannot be read",
        ));
    }
    Ok(chunks)
}

/// The item about the replacement of a device, the last one or one that runs. Chunks do not tell of it: the new device gets the number and
/// the UUID of the old one.
fn replacement(file: &File) -> io::Result<Vec<u8>> {
    let key = Key {
        object: 0,
        kind: DEVICE_REPLACE,
        offset: 0,
    };
    let mut found = Vec::new();
    btrfs::search(file, DEVICE_TREE, key, key, None, |item| {
        found = item.data.to_vec();
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// A device, unless it is missing.
fn member(file: &File, number: u64) -> io::Result<Option<Member>> {
    let Some(info) = btrfs::device(file, number)? else {
        return Ok(None);
    };
    // A path without a device is as good as none.
    let Ok(metadata) = fs::metadata(&info.path) else {
        return Ok(None);
    };
    let node = DeviceNumber::from_stat(metadata.rdev());
    Ok(Some(Member { info, node }))
}
