//! Entry points for fuzzers, as in [`nbd_export::fuzzing`]: functions of bytes that panic where a promise is broken.

use volmap::range::ByteRange;

use crate::image::{Decoder, Event, LEAF, Lent, ParentImage};

/// A function of bytes that panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: [(&str, Target); 1] = [("image", image)];

/// The image decoder: what it gives out tiles the volume, and a file is good or bad however it is cut into pieces.
fn image(input: &[u8]) {
    let (piece, file) = match input.split_first() {
        Some((piece, file)) => (usize::from(*piece) + 1, file),
        None => (1, input),
    };
    let whole = decoded(file, usize::MAX);
    assert_eq!(whole, decoded(file, piece), "the cuts of the reader show");
}

/// A parent of zeroes, of which no block is compared with a leaf hash: what is checked of incremental images beside that is checked.
struct AnyParent;

impl ParentImage for AnyParent {
    fn lend(&mut self, _: ByteRange, _: &mut [u8]) -> Lent {
        Lent::Unchecked
    }

    fn leaves(&mut self, range: ByteRange) -> Option<Vec<blake3::Hash>> {
        let leaf = vec![0; usize::try_from(range.len().min(LEAF)).ok()?];
        Some(vec![
            blake3::hash(&leaf);
            usize::try_from(range.len().div_ceil(LEAF)).ok()?
        ])
    }
}

/// How far a decoder came in the volume, and whether it found the file good.
fn decoded(file: &[u8], piece: usize) -> (u64, bool) {
    let mut decoder = Decoder::new().with_parent(Some(Box::new(AnyParent)));
    let (mut at, mut size) = (0, 0);
    for bytes in file.chunks(piece) {
        decoder.push(bytes);
        loop {
            let range = match decoder.next_event() {
                Ok(None) => break,
                Ok(Some(Event::Header(header))) => {
                    size = header.size;
                    continue;
                }
                Ok(Some(Event::Records(_) | Event::Checkpoint(_))) => continue,
                Ok(Some(Event::Data { range, bytes })) => {
                    assert_eq!(range.len(), bytes.len() as u64);
                    range
                }
                Ok(Some(Event::Zero { range, .. })) => range,
                Err(_) => return (at, false),
            };
            assert_eq!(range.start(), at, "a gap or an overlap");
            at = range.end();
            assert!(at <= size, "bytes behind the end of the volume");
        }
    }
    let good = decoder.finish().is_ok();
    assert!(!good || at == size, "a good file lacks bytes");
    (at, good)
}
