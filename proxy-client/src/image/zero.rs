//! Zeroes: recognising them, and frames of them, which are written rather than compressed.

use std::io::Read;
use std::sync::OnceLock;

use bytes::Bytes;

use super::layout::{LEAF, ZSTD_MAGIC};
use super::limits::{DATA_FRAME_MAX, WINDOW_LOG_MAX, ZERO_FRAME_MAX};

/// Whether every byte is zero. Stops within 256 bytes after the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<256>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// A compressed frame of zeroes.
#[derive(Clone)]
pub(super) struct ZeroFrame {
    pub(super) bytes: Bytes,
    pub(super) hash: blake3::Hash,
}

impl ZeroFrame {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            hash: blake3::hash(&bytes),
            bytes: bytes.into(),
        }
    }
}

/// Frame_Header_Descriptor: a content size of 4 bytes, a content checksum, and a window of its own (RFC 8878, section 3.1.1.1.1).
const DESCRIPTOR: u8 = 0x84;

/// Window_Descriptor of [`WINDOW_LOG_MAX`], without a mantissa (section 3.1.1.1.2).
const WINDOW: u8 = ((WINDOW_LOG_MAX - 10) << 3).to_le_bytes()[0];

/// Block_Type of one byte that is repeated (section 3.1.1.2.2).
const RLE_BLOCK: u64 = 1;

/// Bytes of a block at most (section 3.1.1.2.4).
const BLOCK_MAX: u64 = 128 << 10;

/// Content checksums of the lengths into which the writer cuts zeroes: the low half of their XXH64 (section 3.1.1). First of 1, 2, … 15
/// leaves, then of 1, 2, 4, … 1024 MiB.
const CHECKSUMS: [u32; 26] = [
    0xf157_15a4,
    0x7a95_5073,
    0x7590_0657,
    0xa60f_2740,
    0xf230_3dfc,
    0xa039_5bd1,
    0x651b_83d0,
    0xb605_c552,
    0x94e6_0995,
    0xc818_7b1b,
    0x4cee_aa73,
    0x0d38_1a69,
    0x893e_ccdc,
    0x3df1_06f0,
    0xf652_75ee,
    0xe116_3ef1,
    0xf88e_23db,
    0x7cbc_9d28,
    0x61f6_df0f,
    0x5ee2_d80b,
    0x4c24_8a3f,
    0x7c25_0fa7,
    0x7166_0f34,
    0xb12a_620d,
    0xc240_f504,
    0xb7ff_077f,
];

/// Those frames, each made once: every hole has the same bytes, 70 kB of them in all.
static WRITTEN: [OnceLock<ZeroFrame>; CHECKSUMS.len()] = [const { OnceLock::new() }; CHECKSUMS.len()];

/// Which of those lengths it is: powers of two from 1 MiB to 1 GiB, and below that whole leaves.
fn index(length: u64) -> Option<usize> {
    let leaves = DATA_FRAME_MAX / LEAF - 1;
    let index = if length.is_power_of_two() && length >= DATA_FRAME_MAX {
        leaves + u64::from(length.ilog2() - DATA_FRAME_MAX.ilog2())
    } else if length < DATA_FRAME_MAX && length.is_multiple_of(LEAF) {
        (length / LEAF).checked_sub(1)?
    } else {
        return None;
    };
    usize::try_from(index)
        .ok()
        .filter(|index| *index < CHECKSUMS.len())
}

/// The longest frame for the beginning of `left` (not 0) bytes of zeroes.
pub(super) fn first_length(left: u64) -> u64 {
    if left >= DATA_FRAME_MAX {
        (1 << left.ilog2()).min(ZERO_FRAME_MAX)
    } else if left >= LEAF {
        left - left % LEAF
    } else {
        left
    }
}

/// The frame of `length` zeroes, at most [`ZERO_FRAME_MAX`].
pub(super) fn frame(length: u64) -> ZeroFrame {
    written(length).unwrap_or_else(|| ZeroFrame::new(compressed(length)))
}

fn written(length: u64) -> Option<ZeroFrame> {
    let index = index(length)?;
    let make = || ZeroFrame::new(write(length, CHECKSUMS[index]));
    Some(WRITTEN[index].get_or_init(make).clone())
}

/// A frame that says how often one byte comes, in blocks of 128 KiB: compressing a GiB of zeroes takes a fifth of a second.
fn write(length: u64, checksum: u32) -> Vec<u8> {
    let mut frame = ZSTD_MAGIC.to_le_bytes().to_vec();
    frame.extend([DESCRIPTOR, WINDOW]);
    frame.extend(&length.to_le_bytes()[..4]);
    let mut left = length;
    while left > 0 {
        let size = left.min(BLOCK_MAX);
        left -= size;
        let block = u64::from(left == 0) | RLE_BLOCK << 1 | size << 3;
        frame.extend(&block.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame.extend(checksum.to_le_bytes());
    frame
}

/// One of another length: the last of a volume, or one that is cut short by its many records.
fn compressed(length: u64) -> Vec<u8> {
    let compress = || -> std::io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.set_pledged_src_size(Some(length))?;
        encoder.include_contentsize(true)?;
        encoder.include_checksum(true)?;
        std::io::copy(&mut std::io::repeat(0).take(length), &mut encoder)?;
        encoder.finish()
    };
    compress().expect("zstd compresses zeroes into memory")
}

/// Whether a zstd frame holds `length` zeroes and nothing else. Our own frames are recognised by their bytes.
pub(super) fn holds_zeroes(compressed: &[u8], length: u64) -> Result<bool, std::io::Error> {
    if written(length).is_some_and(|ours| ours.bytes == compressed) {
        return Ok(true);
    }
    let mut decoder = zstd::Decoder::with_buffer(compressed)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    let mut buffer = vec![0; 128 << 10];
    let mut left = length;
    loop {
        let read = decoder.read(&mut buffer)?;
        if read == 0 {
            return Ok(left == 0);
        }
        // No more is decompressed than the frame may hold.
        let Some(rest) = left.checked_sub(read as u64) else {
            return Ok(false);
        };
        left = rest;
        if !is_zero(&buffer[..read]) {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_finds_in_every_written_frame_what_it_says() {
        let leaves = (1..16).map(|count| count * LEAF);
        let powers = (20..=30).map(|log| 1 << log);
        for length in leaves.chain(powers) {
            let frame = written(length).unwrap().bytes;
            assert_eq!(
                zstd::zstd_safe::get_frame_content_size(&frame).unwrap(),
                Some(length)
            );
            // Its checksum is compared at the end of it.
            let mut decoder = zstd::Decoder::with_buffer(&*frame).unwrap().single_frame();
            decoder.window_log_max(WINDOW_LOG_MAX).unwrap();
            let mut buffer = vec![1; 1 << 20];
            let mut found = 0;
            loop {
                let read = decoder.read(&mut buffer).unwrap();
                assert!(is_zero(&buffer[..read]));
                found += read as u64;
                if read == 0 {
                    break;
                }
            }
            assert_eq!(found, length);
        }
    }

    #[test]
    fn no_other_length_is_written() {
        for length in [
            0,
            1,
            LEAF - 1,
            LEAF + 1,
            17 * LEAF,
            3 << 20,
            2 * ZERO_FRAME_MAX,
            u64::MAX,
        ] {
            assert!(written(length).is_none(), "{length}");
        }
        for left in [1, LEAF, 16 * LEAF - 1, 17 * LEAF, (1 << 21) + 1, u64::MAX] {
            let first = first_length(left);
            assert!(
                first <= left && (first == left && left < LEAF || written(first).is_some()),
                "{left}"
            );
        }
    }
}
