//! Reads of a block device past the page cache, from any offset.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{ALIGNMENT, AlignedBuffer, is_aligned};

/// Bytes that are read at a time where the buffer is not fit for it: memory for one reader.
const READ_MAX: usize = 1 << 20;

/// Fills `buf` from a device opened with `O_DIRECT`.
///
/// # Errors
/// Of the reads; `UnexpectedEof` behind the end of the device.
pub(crate) fn read_direct(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    if is_aligned(offset, buf) {
        return file.read_exact_at(buf, offset);
    }
    let mut at = offset;
    for part in buf.chunks_mut(READ_MAX) {
        let before = usize::try_from(at % ALIGNMENT as u64).map_err(io::Error::other)?;
        let mut whole = AlignedBuffer::zeroed((before + part.len()).next_multiple_of(ALIGNMENT));
        let wanted = before + part.len();
        let start = at - before as u64;
        let mut got = 0;
        // The last block of a device may be smaller than the alignment: a short read, at the end only.
        while got < wanted {
            match file.read_at(&mut whole[got..], start + got as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => got += n,
            }
        }
        part.copy_from_slice(&whole[before..wanted]);
        at += part.len() as u64;
    }
    Ok(())
}
