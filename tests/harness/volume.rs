//! Volumes to back up: files with data and holes at chosen places.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Bytes that no compressor likes, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A file of `size` bytes with noise in some ranges and holes elsewhere.
pub fn sparse(path: &Path, size: u64, data: &[Range<u64>]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for range in data {
        let length = usize::try_from(range.end - range.start).unwrap();
        file.write_all_at(&noise(range.start + 1, length), range.start)
            .unwrap();
    }
    file.sync_all().unwrap();
}

/// A file of `size` bytes of noise.
pub fn dense(path: &Path, size: u64) {
    std::fs::write(path, noise(size, usize::try_from(size).unwrap())).unwrap();
}

/// A small volume with data and holes on and off every grid, and written zeroes.
pub fn motley(path: &Path) {
    let mib = 1 << 20;
    let data = [
        0..70_000,
        3 * mib..5 * mib + 1,
        9 * mib - 4096..9 * mib,
        20 * mib..24 * mib,
    ];
    sparse(path, 32 * mib, &data);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; 300_000], 22 * mib).unwrap();
    file.sync_all().unwrap();
}

/// A file of `size` bytes of old data.
pub fn full_of_old_data(path: &Path, size: u64) {
    std::fs::write(path, vec![OLD; usize::try_from(size).unwrap()]).unwrap();
}

/// What old data is made of.
pub const OLD: u8 = 0xa5;

/// Bytes that a file takes on its disk.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}
