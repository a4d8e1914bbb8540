//! Storage, as narrow as it can be: the place where tests let writers in.

use std::io;
use std::sync::Arc;

/// Zeroes that are written in one go.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A fixed number of bytes that several threads read and write at once: the origin, or the copy area.
///
/// Copy-before-write calls these and nothing else, in this order for each write: [`read_at`](Backing::read_at) of the
/// origin, [`write_through_at`](Backing::write_through_at) of the copy area, the switch, and then the write to the origin.
/// A wrapper around the two backings can thus hold a writer before the old data is read, between the completion of the
/// copy and the switch (after `write_through_at` has returned below it), and between the switch and the write.
///
/// Ranges lie within [`size`](Backing::size): the callers see to that.
pub trait Backing: Send + Sync {
    /// Size in bytes; it never changes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// What the storage says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`, into a cache perhaps.
    ///
    /// # Errors
    /// What the storage says; any part may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Gives blocks back, so that the range reads as zeroes.
    ///
    /// # Errors
    /// `Unsupported`: nothing happened, and the caller writes zeroes instead. Anything else: as with `write_at`.
    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns when everything written before is on the device (fdatasync).
    ///
    /// # Errors
    /// What the storage says; what was written before may be lost.
    fn sync_data(&self) -> io::Result<()>;

    /// Writes all of `data` at `offset`, and returns when a reader of the device would see it.
    ///
    /// # Errors
    /// As with `write_at`.
    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)?;
        self.sync_data()
    }

    /// Writes zeroes as data: no block is given back or changes its place.
    ///
    /// # Errors
    /// As with `write_at`.
    fn write_zeroes_at(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut written = 0;
        while written < len {
            let piece = usize::try_from(len - written).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.write_at(offset + written, &ZEROES[..piece])?;
            written += piece as u64;
        }
        Ok(())
    }
}

impl<T: Backing + ?Sized> Backing for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, data)
    }

    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).punch_at(offset, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data()
    }

    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write_through_at(offset, data)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).write_zeroes_at(offset, len)
    }
}
