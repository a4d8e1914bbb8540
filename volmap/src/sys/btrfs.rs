//! What btrfs says of itself: its trees, its devices, its subvolumes (`include/uapi/linux/btrfs.h`, `btrfs_tree.h`).
//!
//! Any open file of the file system will do. Numbers in the arguments of an `ioctl` are in the byte order of the machine, those in items
//! of trees little endian.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::libc;
use uuid::Uuid;

use super::ioctl;

const BTRFS_IOC_TREE_SEARCH_V2: libc::Ioctl = 0xc070_9411;
const BTRFS_IOC_WAIT_SYNC: libc::Ioctl = 0x4008_9416;
const BTRFS_IOC_START_SYNC: libc::Ioctl = 0x8008_9418;
const BTRFS_IOC_DEV_INFO: libc::Ioctl = 0xd000_941e;
const BTRFS_IOC_FS_INFO: libc::Ioctl = 0x8400_941f;
const BTRFS_IOC_GET_DEV_STATS: libc::Ioctl = 0xc408_9434;
const BTRFS_IOC_GET_FEATURES: libc::Ioctl = 0x8018_9439;
const BTRFS_IOC_GET_SUBVOL_INFO: libc::Ioctl = 0x81f8_943c;

/// Bytes of `struct btrfs_ioctl_search_key`, and of the buffer's size behind it.
const SEARCH_KEY: usize = 104;
const SEARCH_HEADER: usize = SEARCH_KEY + 8;
/// Bytes of `struct btrfs_ioctl_search_header`, which stands before every item.
const ITEM_HEADER: usize = 32;
/// Room for items in one call; an item is smaller than a node, which is at most this.
const SEARCH_ROOM: usize = 64 << 10;

/// A file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystemInfo {
    /// Its UUID.
    pub uuid: Uuid,
    /// The largest number of a device.
    pub largest_device: u64,
}

/// The file system of a file.
///
/// # Errors
/// `ENOTTY`: not btrfs.
pub fn file_system(file: &File) -> io::Result<FileSystemInfo> {
    let mut info = [0; 1024];
    call(file, BTRFS_IOC_FS_INFO, &mut info)?;
    Ok(FileSystemInfo {
        uuid: uuid_at(&info, 16)?,
        largest_device: u64_at(&info, 0)?,
    })
}

/// The features in use that a reader has to know.
///
/// # Errors
/// `ENOTTY`: not btrfs.
pub fn incompatible_features(file: &File) -> io::Result<u64> {
    let mut features = [0; 24];
    call(file, BTRFS_IOC_GET_FEATURES, &mut features)?;
    u64_at(&features, 16)
}

/// A subvolume or snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subvolume {
    /// The number of its tree.
    pub tree: u64,
    /// The transaction that changed its root last, as of the last commit.
    pub generation: u64,
    /// Whether nobody can change anything in it.
    pub read_only: bool,
}

/// The subvolume that a file lies in.
///
/// # Errors
/// `ENOTTY`: not btrfs, or a kernel before 4.18.
pub fn subvolume(file: &File) -> io::Result<Subvolume> {
    const READ_ONLY: u64 = 1;
    let mut info = [0; 504];
    call(file, BTRFS_IOC_GET_SUBVOL_INFO, &mut info)?;
    Ok(Subvolume {
        tree: u64_at(&info, 0)?,
        generation: u64_at(&info, 280)?,
        read_only: u64_at(&info, 288)? & READ_ONLY != 0,
    })
}

/// Commits what was changed so far, and gives the number of the transaction: later changes have a larger one.
///
/// # Errors
/// Of the file system, which may have gone read-only.
pub fn commit(file: &File) -> io::Result<u64> {
    let mut transaction = [0; 8];
    call(file, BTRFS_IOC_START_SYNC, &mut transaction)?;
    let mut awaited = transaction;
    call(file, BTRFS_IOC_WAIT_SYNC, &mut awaited)?;
    u64_at(&transaction, 0)
}

/// A device of a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its number.
    pub number: u64,
    /// Its UUID.
    pub uuid: Uuid,
    /// Where the kernel found it; empty for one that is missing.
    pub path: PathBuf,
}

/// One device; `None` where there is none of that number.
///
/// # Errors
/// Of the `ioctl`.
pub fn device(file: &File, number: u64) -> io::Result<Option<DeviceInfo>> {
    let mut info = vec![0; 4096];
    put(&mut info, 0, number);
    match call(file, BTRFS_IOC_DEV_INFO, &mut info) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        other => other?,
    }
    let path = info.split_off(3072);
    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
    Ok(Some(DeviceInfo {
        number,
        uuid: uuid_at(&info, 8)?,
        path: PathBuf::from(OsStr::from_bytes(&path[..end])),
    }))
}

/// How often a write or flush of a device failed, or what it gave back was not what was written. Reads that failed are not counted here.
///
/// # Errors
/// Of the `ioctl`.
pub fn device_errors(file: &File, number: u64) -> io::Result<u64> {
    const COUNTERS: u64 = 5;
    const READ_ERRORS: usize = 1;
    let mut stats = vec![0; 1032];
    put(&mut stats, 0, number);
    put(&mut stats, 8, COUNTERS);
    call(file, BTRFS_IOC_GET_DEV_STATS, &mut stats)?;
    (0..5)
        .filter(|&counter| counter != READ_ERRORS)
        .try_fold(0_u64, |sum, counter| {
            Ok(sum.saturating_add(u64_at(&stats, 24 + 8 * counter)?))
        })
}

/// A key of a tree. Keys are ordered by these three, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// What it is about.
    pub object: u64,
    /// The kind of item.
    pub kind: u8,
    /// The third part.
    pub offset: u64,
}

impl Key {
    /// The first of all.
    pub const FIRST: Self = Self {
        object: 0,
        kind: 0,
        offset: 0,
    };
    /// The last of all.
    pub const LAST: Self = Self {
        object: u64::MAX,
        kind: u8::MAX,
        offset: u64::MAX,
    };

    fn next(self) -> Option<Self> {
        let Self { object, kind, offset } = self;
        if let Some(offset) = offset.checked_add(1) {
            return Some(Self { offset, ..self });
        }
        if let Some(kind) = kind.checked_add(1) {
            return Some(Self {
                object,
                kind,
                offset: 0,
            });
        }
        Some(Self {
            object: object.checked_add(1)?,
            kind: 0,
            offset: 0,
        })
    }
}

/// An item of a tree, as the tree is now, committed or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item<'a> {
    /// Its key.
    pub key: Key,
    /// What it holds.
    pub data: &'a [u8],
}

/// Tells `visit` the items of a tree from the key `first` to the key `last`, in order, until it breaks off; with `newer_than` only those in
/// leaves that were written by a later transaction, which costs nothing for parts of the tree that were not.
///
/// # Errors
/// `PermissionDenied`: wants `CAP_SYS_ADMIN`. `NotFound`: no such tree.
pub fn search(
    file: &File,
    tree: u64,
    first: Key,
    last: Key,
    newer_than: Option<u64>,
    mut visit: impl FnMut(Item<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut from = first;
    let mut buffer = vec![0; SEARCH_HEADER + SEARCH_ROOM];
    loop {
        let oldest = newer_than.map_or(0, |newest| newest.saturating_add(1));
        encode_search(&mut buffer, tree, from, last, oldest);
        call(file, BTRFS_IOC_TREE_SEARCH_V2, &mut buffer)?;
        let mut reached = None;
        for item in items(&buffer)? {
            let item = item?;
            if item.key < from {
                return Err(unreadable());
            }
            reached = Some(item.key);
            if item.key <= last && visit(item).is_break() {
                return Ok(());
            }
        }
        match reached.and_then(Key::next) {
            Some(next) if next <= last => from = next,
            _ => return Ok(()),
        }
    }
}

fn encode_search(buffer: &mut [u8], tree: u64, first: Key, last: Key, oldest: u64) {
    buffer[..SEARCH_HEADER].fill(0);
    let numbers = [
        tree,
        first.object,
        last.object,
        first.offset,
        last.offset,
        oldest,
        u64::MAX,
    ];
    for (index, number) in numbers.into_iter().enumerate() {
        put(buffer, 8 * index, number);
    }
    let small = [u32::from(first.kind), u32::from(last.kind), u32::MAX];
    for (index, number) in small.into_iter().enumerate() {
        buffer[56 + 4 * index..60 + 4 * index].copy_from_slice(&number.to_ne_bytes());
    }
    put(buffer, SEARCH_KEY, SEARCH_ROOM as u64);
}

/// The items of an answer.
fn items(answer: &[u8]) -> io::Result<impl Iterator<Item = io::Result<Item<'_>>>> {
    let count = u32_at(answer, 64)?;
    let mut at = SEARCH_HEADER;
    Ok((0..count).map(move |_| {
        let header = answer.get(at..).ok_or_else(unreadable)?;
        let len = usize::try_from(u32_at(header, 28)?).map_err(io::Error::other)?;
        let data = header
            .get(ITEM_HEADER..)
            .and_then(|rest| rest.get(..len))
            .ok_or_else(unreadable)?;
        at += ITEM_HEADER + len;
        Ok(Item {
            key: Key {
                object: u64_at(header, 8)?,
                kind: u8::try_from(u32_at(header, 24)?).map_err(|_| unreadable())?,
                offset: u64_at(header, 16)?,
            },
            data,
        })
    }))
}

fn call(file: &File, request: libc::Ioctl, argument: &mut [u8]) -> io::Result<()> {
    let told = usize::try_from(request >> 16 & 0x3fff).map_err(io::Error::other)?;
    assert!(argument.len() >= told, "room for what the request number says");
    // SAFETY: the kernel reads and writes the bytes that the request number says, and for a search as many behind them as the header
    // gives as room, which is what the buffer has.
    unsafe { ioctl::with_bytes(file, request, argument) }.map(drop)
}

fn put(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_ne_bytes());
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "btrfs gave an answer that cannot be read",
    )
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or_else(unreadable)?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    let bytes = bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or_else(unreadable)?;
    Ok(u64::from_ne_bytes(*bytes))
}

fn uuid_at(bytes: &[u8], at: usize) -> io::Result<Uuid> {
    let bytes = bytes.get(at..at + 16).ok_or_else(unreadable)?;
    Uuid::from_slice(bytes).map_err(|_| unreadable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_each_other() {
        let key = |object, kind, offset| Key { object, kind, offset };
        assert_eq!(key(1, 2, 3).next(), Some(key(1, 2, 4)));
        assert_eq!(key(1, 2, u64::MAX).next(), Some(key(1, 3, 0)));
        assert_eq!(key(1, 255, u64::MAX).next(), Some(key(2, 0, 0)));
        assert_eq!(Key::LAST.next(), None);
        assert!(key(1, 2, 9) < key(1, 3, 0) && key(1, 9, 9) < key(2, 0, 0));
    }

    #[test]
    fn items_of_an_answer_are_read_and_a_cut_one_is_refused() {
        let mut answer = vec![0; SEARCH_HEADER];
        answer[64..68].copy_from_slice(&2_u32.to_ne_bytes());
        for (offset, data) in [(7_u64, &b"first"[..]), (8, b"")] {
            for number in [99_u64, 256, offset] {
                answer.extend(number.to_ne_bytes());
            }
            answer.extend(228_u32.to_ne_bytes());
            answer.extend(u32::try_from(data.len()).unwrap().to_ne_bytes());
            answer.extend(data);
        }
        let key = |offset| Key {
            object: 256,
            kind: 228,
            offset,
        };
        let found: Vec<Item<'_>> = items(&answer).unwrap().collect::<io::Result<_>>().unwrap();
        let expected = [(key(7), &b"first"[..]), (key(8), b"")];
        assert_eq!(found, expected.map(|(key, data)| Item { key, data }));
        for len in SEARCH_HEADER..answer.len() {
            let read: io::Result<Vec<Item<'_>>> = items(&answer[..len]).unwrap().collect();
            assert!(read.is_err(), "{len}");
        }
    }

    #[test]
    fn a_search_has_the_layout_of_the_kernel() {
        let mut buffer = vec![0xff; SEARCH_HEADER + SEARCH_ROOM];
        let first = Key {
            object: 256,
            kind: 228,
            offset: 5,
        };
        encode_search(&mut buffer, 3, first, Key::LAST, 17);
        let numbers: Vec<u64> = (0..7).map(|n| u64_at(&buffer, 8 * n).unwrap()).collect();
        assert_eq!(numbers, [3, 256, u64::MAX, 5, u64::MAX, 17, u64::MAX]);
        assert_eq!(u32_at(&buffer, 56).unwrap(), 228);
        assert_eq!(u32_at(&buffer, 60).unwrap(), 255);
        assert_eq!(u64_at(&buffer, 104).unwrap(), 65536);
        assert_eq!(BTRFS_IOC_TREE_SEARCH_V2 >> 16 & 0x3fff, 112);
    }
}
