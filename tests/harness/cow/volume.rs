//! The volume that writers begin with, and how two are compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A volume of `size` bytes: data that differ everywhere, a hole in the middle, and another one at the end.
fn first_content(size: u64) -> (Vec<u8>, [std::ops::Range<u64>; 2]) {
    let holes = [size / 2..size / 2 + size / 8, size - size / 16 - 4096..size];
    let mut content = vec![0; usize::try_from(size).unwrap()];
    for (word, at) in content.as_chunks_mut::<8>().0.iter_mut().zip((0..).step_by(8)) {
        if !holes.iter().any(|hole| hole.contains(&at)) {
            *word = (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        }
    }
    (content, holes)
}

/// Makes a file of [`first_content`].
pub fn make_volume(path: &Path, size: u64) -> Vec<u8> {
    let file = File::create_new(path).unwrap();
    file.set_len(size).unwrap();
    fill(&file, size)
}

/// Writes [`first_content`] to a block device that is all zeroes.
pub fn fill_device(path: &Path, size: u64) -> Vec<u8> {
    fill(&File::options().write(true).open(path).unwrap(), size)
}

fn fill(file: &File, size: u64) -> Vec<u8> {
    let (content, holes) = first_content(size);
    let mut at = 0;
    for hole in holes {
        let data = &content[usize::try_from(at).unwrap()..usize::try_from(hole.start).unwrap()];
        file.write_all_at(data, at).unwrap();
        at = hole.end;
    }
    file.sync_all().unwrap();
    content
}

/// Compares volumes, and tells where they differ.
pub fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: size");
    if found != wanted {
        let at = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
        let differing = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
        panic!("{what}: {differing} bytes differ, the first at {at}");
    }
}
