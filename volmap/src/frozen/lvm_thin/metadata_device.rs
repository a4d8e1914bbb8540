//! The device that holds a pool's metadata, read past the page cache: its cached pages are of some earlier metadata snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::metadata::{BLOCK_SIZE, BlockSource, MetadataError, See};
use crate::storage::AlignedBuffer;
use crate::sys::block_device;

/// Most blocks that are read together: 1 MiB, which reaches the bandwidth of a disk.
const BLOCKS_MAX: u64 = 256;

/// Blocks that are read in vain rather than seeking past them.
const GAP_MAX: u64 = 16;

/// An open metadata device.
#[derive(Debug)]
pub(super) struct MetadataDevice {
    file: File,
    blocks: u64,
}

impl MetadataDevice {
    /// A device that was opened with `O_DIRECT`.
    ///
    /// # Errors
    /// It cannot be asked for its size.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let blocks = block_device::size(&file)? / BLOCK_SIZE as u64;
        Ok(Self { file, blocks })
    }
}

impl BlockSource for MetadataDevice {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn show(&self, blocks: &[u64], see: &mut See<'_>) -> Result<(), MetadataError> {
        let (mut rest, mut nth) = (blocks, 0);
        while let Some((&first, _)) = rest.split_first() {
            let (near, far) = rest.split_at(nearby(rest));
            let index = |block: u64| usize::try_from(block - first).unwrap_or_default() * BLOCK_SIZE;
            let end = near.last().map_or(BLOCK_SIZE, |&last| index(last) + BLOCK_SIZE);
            let mut bytes = AlignedBuffer::zeroed(end);
            self.file
                .read_exact_at(&mut bytes, first * BLOCK_SIZE as u64)
                .map_err(|source| MetadataError::Read { block: first, source })?;
            for &block in near {
                see(nth, &bytes[index(block)..][..BLOCK_SIZE])?;
                nth += 1;
            }
            rest = far;
        }
        Ok(())
    }
}

/// How many blocks of a rising list, at least 1, are read together.
fn nearby(blocks: &[u64]) -> usize {
    let near = |pair: &[u64]| pair[1] - pair[0] <= GAP_MAX && pair[1] - blocks[0] < BLOCKS_MAX;
    1 + blocks.windows(2).take_while(|pair| near(pair)).count()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_read_together_and_no_more_than_a_mebibyte() {
        assert_eq!(nearby(&[7]), 1);
        assert_eq!(nearby(&[7, 8, 24, 40]), 4);
        assert_eq!(nearby(&[7, 8, 25]), 2);
        let all: Vec<u64> = (100..1000).collect();
        assert_eq!(nearby(&all), 256);
        assert_eq!(nearby(&[3, 3, 4]), 3);
    }

    proptest! {
        #[test]
        fn every_block_is_shown_once_in_its_place(mut wanted in proptest::collection::vec(0..700u64, 0..90)) {
            let mut file = tempfile::tempfile().unwrap();
            for block in 0..700u64 {
                file.write_all(&[block.to_le_bytes().as_slice(), &[0; BLOCK_SIZE - 8]].concat()).unwrap();
            }
            let device = MetadataDevice::new(file).unwrap();
            prop_assert_eq!(device.blocks(), 700);
            wanted.sort_unstable();
            let mut shown = Vec::new();
            device.show(&wanted, &mut |nth, bytes| {
                assert_eq!((nth, bytes.len()), (shown.len(), BLOCK_SIZE));
                shown.push(u64::from_le_bytes(*bytes.first_chunk().unwrap()));
                Ok(())
            }).unwrap();
            prop_assert_eq!(shown, wanted);
        }
    }
}
