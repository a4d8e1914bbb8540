//! What a read gives: pieces in order, their bytes in memory that is used again.

use std::fs::File;
use std::ops::Deref;
use std::sync::Arc;

use volmap::range::ByteRange;
use volmap::storage::AlignedBuffer;

use super::limits::{SPARE_BUFFERS_MAX, SPARE_BYTES_MAX};

/// A piece of what a read gave.
#[derive(Debug)]
pub enum Piece {
    /// Bytes, at least 1, from `offset` on.
    Data {
        /// Offset in the export.
        offset: u64,
        /// The bytes, in memory that nobody else can change (law H5).
        bytes: Buffer,
    },
    /// Bytes that lie at the same offsets of a file in the page cache, and that nobody will ever write again: to be sent by
    /// reference (law H5).
    File {
        /// Where in the export, and in the file.
        range: ByteRange,
        /// The file.
        file: Arc<File>,
    },
    /// A range that reads as zeroes.
    Zeroes(ByteRange),
}

/// Bytes in memory that is fit for `O_DIRECT`.
#[derive(Debug)]
pub struct Buffer {
    memory: AlignedBuffer,
    len: usize,
}

impl Buffer {
    /// Bytes of memory that it takes, which may be more than it holds.
    pub fn memory(&self) -> usize {
        self.memory.len() + volmap::storage::ALIGNMENT
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

/// The pieces of one read, and memory of earlier ones. Memory that was never given back costs the kernel a fault for each page of
/// every read, as much as copying the bytes does.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Whether whoever gets the pieces can send bytes of a file by reference.
    takes_files: bool,
    pieces: Vec<Piece>,
    spare: Vec<AlignedBuffer>,
    spare_bytes: usize,
}

impl Pieces {
    /// For a reader that can send bytes of a file by reference.
    pub fn with_files() -> Self {
        Self {
            takes_files: true,
            ..Self::default()
        }
    }

    /// Whether [`Piece::File`] may be among them.
    pub fn takes_files(&self) -> bool {
        self.takes_files
    }

    /// Pieces for another thread, with memory for `len` bytes of data.
    pub fn for_another(&mut self, len: usize) -> Self {
        let memory = self.memory(len);
        let mut other = Self::default();
        other.give_back(Buffer { memory, len });
        other
    }

    /// Appends a piece of data at `offset` and gives the memory to fill. What is in it before is of no use.
    pub fn data(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let memory = self.memory(len);
        self.pieces.push(Piece::Data {
            offset,
            bytes: Buffer { memory, len },
        });
        match self.pieces.last_mut() {
            Some(Piece::Data { bytes, .. }) => &mut bytes.memory[..len],
            _ => unreachable!("it was pushed a moment ago"),
        }
    }

    /// Appends zeroes.
    pub fn zeroes(&mut self, range: ByteRange) {
        self.pieces.push(Piece::Zeroes(range));
    }

    /// Appends bytes of an immutable file.
    ///
    /// # Panics
    /// The reader does not take files.
    pub fn file(&mut self, range: ByteRange, file: Arc<File>) {
        assert!(
            self.takes_files,
            "whoever gives a file has asked whether it is taken"
        );
        self.pieces.push(Piece::File { range, file });
    }

    /// The pieces, in order.
    pub fn as_slice(&self) -> &[Piece] {
        &self.pieces
    }

    /// Takes the pieces out.
    pub fn drain(&mut self) -> impl Iterator<Item = Piece> {
        self.pieces.drain(..)
    }

    /// Forgets the pieces and keeps their memory: a read begins anew.
    pub fn clear(&mut self) {
        while let Some(piece) = self.pieces.pop() {
            if let Piece::Data { bytes, .. } = piece {
                self.give_back(bytes);
            }
        }
    }

    /// Memory for a later read.
    pub fn give_back(&mut self, buffer: Buffer) {
        let len = buffer.memory.len();
        if self.spare.len() < SPARE_BUFFERS_MAX && self.spare_bytes + len <= SPARE_BYTES_MAX {
            self.spare_bytes += len;
            self.spare.push(buffer.memory);
        }
    }

    /// Memory of at least `len` bytes: what was given back last is the likeliest to be in a cache of the processor.
    fn memory(&mut self, len: usize) -> AlignedBuffer {
        let size = len.next_power_of_two().max(volmap::storage::ALIGNMENT);
        match self.spare.iter().rposition(|spare| spare.len() == size) {
            Some(at) => {
                self.spare_bytes -= size;
                self.spare.swap_remove(at)
            }
            None => AlignedBuffer::zeroed(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(pieces: &mut Pieces) -> Vec<Buffer> {
        let data = |piece| match piece {
            Piece::Data { bytes, .. } => Some(bytes),
            _ => None,
        };
        pieces.drain().filter_map(data).collect()
    }

    #[test]
    fn memory_is_used_again_for_a_read_of_its_size() {
        let mut pieces = Pieces::default();
        pieces.data(0, 5000).fill(1);
        let first = buffers(&mut pieces).remove(0);
        let at = first.as_ptr();
        assert_eq!(*first, [1; 5000]);
        pieces.give_back(first);
        assert_ne!(pieces.data(0, 4096).as_ptr(), at);
        assert_eq!(pieces.data(0, 4097).as_ptr(), at);
        pieces.clear();
        assert!(pieces.as_slice().is_empty());
        assert_eq!(pieces.data(7, 8192).as_ptr(), at);
    }

    #[test]
    fn what_is_kept_is_bounded_by_number_and_bytes() {
        let mut pieces = Pieces::default();
        for (len, kept) in [
            (1, SPARE_BUFFERS_MAX),
            (SPARE_BYTES_MAX, 1),
            (2 * SPARE_BYTES_MAX, 0),
        ] {
            for _ in 0..=SPARE_BUFFERS_MAX {
                pieces.data(0, len);
            }
            pieces.clear();
            assert_eq!(pieces.spare.len(), kept, "{len}");
            assert!(pieces.spare_bytes <= SPARE_BYTES_MAX);
            pieces = Pieces::default();
        }
    }
}
