//! GETFSMAP: who has what of the device of a mounted file system.

use std::fs::File;
use std::io;

use nix::libc;

use super::{DeviceNumber, ioctl};

const FS_IOC_GETFSMAP: libc::Ioctl = 0xc0c0_583b;

/// Devices are told by number (`FMH_OF_DEV_T`).
const DEVICES_BY_NUMBER: u32 = 0x1;
/// The owner is one of the file system's own words, and no inode (`FMR_OF_SPECIAL_OWNER`).
const SPECIAL_OWNER: u32 = 0x10;
/// Nothing follows (`FMR_OF_LAST`).
const LAST: u32 = 0x20;
/// The word for what nobody has (`FMR_OWN_FREE`).
const FREE: u64 = 1;

/// Records for one call: 64 KiB.
const BATCH: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Record {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    offset: u64,
    length: u64,
    reserved: [u64; 3],
}

impl Record {
    const HIGHEST: Self = Self {
        device: u32::MAX,
        flags: u32::MAX,
        physical: u64::MAX,
        owner: u64::MAX,
        offset: u64::MAX,
        length: 0,
        reserved: [0; 3],
    };
}

#[repr(C)]
struct Request {
    input_flags: u32,
    output_flags: u32,
    count: u32,
    entries: u32,
    reserved: [u64; 6],
    low: Record,
    high: Record,
    records: [Record; BATCH],
}

/// Tells `visit` the first byte and the length of everything on `device` that the file system of `root` has given to nobody, in rising order. What it
/// does not tell of is in use, or may be.
///
/// # Errors
/// `ENOTTY`, `EOPNOTSUPP`: the file system does not tell. `InvalidData`: it answered nonsense.
pub fn visit_free(root: &File, device: DeviceNumber, mut visit: impl FnMut(u64, u64)) -> io::Result<()> {
    let mut request = Box::new(Request {
        input_flags: 0,
        output_flags: 0,
        count: u32::try_from(BATCH).map_err(io::Error::other)?,
        entries: 0,
        reserved: [0; 6],
        low: Record::default(),
        high: Record::HIGHEST,
        records: [Record::default(); BATCH],
    });
    let nonsense = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut next = 0;
    loop {
        // SAFETY: the kernel writes the header and at most `count` = BATCH records behind it: exactly a Request, all integers.
        unsafe { ioctl::with_argument(root, FS_IOC_GETFSMAP, request.as_mut()) }?;
        if request.output_flags & DEVICES_BY_NUMBER == 0 {
            return Err(nonsense("GETFSMAP does not tell devices by their numbers"));
        }
        let told = usize::try_from(request.entries).map_err(io::Error::other)?;
        let records = (request.records.get(..told)).ok_or_else(|| nonsense("GETFSMAP counts wrong"))?;
        for record in records {
            let is_free = record.flags & SPECIAL_OWNER != 0 && record.owner == FREE;
            if !is_free || DeviceNumber::from_kernel(record.device.into()) != device {
                continue;
            }
            let end = record.physical.checked_add(record.length);
            let (true, Some(end)) = (record.physical >= next && record.length > 0, end) else {
                return Err(nonsense("GETFSMAP answered records out of order"));
            };
            visit(record.physical, record.length);
            next = end;
        }
        match records.last() {
            Some(last) if last.flags & LAST == 0 => request.low = *last,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Record>(), 64);
        assert_eq!(std::mem::offset_of!(Request, records), 192);
        assert_eq!(FS_IOC_GETFSMAP >> 16 & 0x3fff, 192);
    }
}
