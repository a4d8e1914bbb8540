//! Zeroes: recognising them, and frames of them that are compressed once.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::layout::LEAF;
use super::limits::{DATA_FRAME_MAX, WINDOW_LOG_MAX, ZERO_FRAME_MAX};

static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

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

/// Frames by plain length. Only [`is_canonical`] lengths are kept: 26 of them, 70 kB.
static FRAMES: Mutex<BTreeMap<u64, ZeroFrame>> = Mutex::new(BTreeMap::new());

/// Lengths into which the writer cuts zeroes, so that a handful of frames serves every hole: powers of two from 1 MiB to
/// 1 GiB, and below that whole leaves.
fn is_canonical(length: u64) -> bool {
    length > 0
        && length <= ZERO_FRAME_MAX
        && (length.is_power_of_two() && length >= DATA_FRAME_MAX
            || length < DATA_FRAME_MAX && length.is_multiple_of(LEAF))
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

/// The frame of `length` zeroes.
pub(super) fn frame(length: u64) -> ZeroFrame {
    if !is_canonical(length) {
        return compress(length);
    }
    let cached = |frames: &BTreeMap<u64, ZeroFrame>| frames.get(&length).cloned();
    let lock = || FRAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(frame) = cached(&lock()) {
        return frame;
    }
    // Compressed outside the lock: 1 GiB takes a fifth of a second.
    let frame = compress(length);
    lock().entry(length).or_insert(frame).clone()
}

fn compress(length: u64) -> ZeroFrame {
    let compress = || -> std::io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.set_pledged_src_size(Some(length))?;
        encoder.include_contentsize(true)?;
        encoder.include_checksum(true)?;
        let mut left = length;
        while left > 0 {
            let step = left.min(ZEROES.len() as u64);
            encoder.write_all(&ZEROES[..super::layout::in_memory(step)])?;
            left -= step;
        }
        encoder.finish()
    };
    let bytes: Bytes = compress().expect("zstd compresses zeroes into memory").into();
    ZeroFrame {
        hash: blake3::hash(&bytes),
        bytes,
    }
}

/// Whether a zstd frame holds `length` zeroes and nothing else. Our own frames are recognised by their bytes.
pub(super) fn holds_zeroes(compressed: &[u8], length: u64) -> Result<bool, std::io::Error> {
    if is_canonical(length) && frame(length).bytes == compressed {
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
