//! The hash tree: leaves of 64 KiB of the volume, and the root over all of them and the size.
//!
//! The root depends on the bytes of the volume and on what was unreadable, never on how the bytes were cut into frames,
//! compressed or got: two images of the same instant have the same root.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Serialize, Serializer};
use volmap::range::ByteRange;

use super::layout::{LEAF, LEAF_BYTES, in_memory, in_u32};
use super::record::{Kind, Record};

pub(super) const ROOT_CONTEXT: &str = "proxy-client backup image root v1";
pub(super) const UNREADABLE_CONTEXT: &str = "proxy-client backup image unreadable leaf v1";

static ZERO_LEAF: [u8; LEAF_BYTES] = [0; LEAF_BYTES];
static ZERO_LEAF_HASH: LazyLock<blake3::Hash> = LazyLock::new(|| blake3::hash(&ZERO_LEAF));
static UNREADABLE_LEAF_HASH: LazyLock<blake3::Hash> =
    LazyLock::new(|| leaf_hash(&ZERO_LEAF, &[(0, in_u32(LEAF))]));

/// The root of an image: what its bytes, its unreadable ranges and its size come down to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root([u8; 32]);

impl Root {
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A root as it stands in an image.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses 64 hexadecimal digits.
impl FromStr for Root {
    type Err = blake3::HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes()))
    }
}

impl Serialize for Root {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The hash of a leaf: of its plain bytes, or, where some of it was unreadable, of its bytes (zeroes standing in) and
/// the stretches `(start, length)` in the leaf that were, neighbours joined, under a context of its own.
pub(super) fn leaf_hash(plain: &[u8], unreadable: &[(u32, u32)]) -> blake3::Hash {
    if unreadable.is_empty() {
        return blake3::hash(plain);
    }
    let mut hasher = blake3::Hasher::new_derive_key(UNREADABLE_CONTEXT);
    hasher.update(plain);
    for (start, length) in unreadable {
        hasher.update(&start.to_le_bytes());
        hasher.update(&length.to_le_bytes());
    }
    hasher.finalize()
}

/// The stretches of `leaf` that sorted records call unreadable, relative to it, neighbours joined.
fn unreadable_in(records: &[Record], leaf: ByteRange) -> Vec<(u32, u32)> {
    let mut stretches: Vec<(u32, u32)> = Vec::new();
    let first = records.partition_point(|record| record.range.end() <= leaf.start());
    for record in &records[first..] {
        let Some(part) = record.range.intersection(leaf) else {
            break;
        };
        if record.kind != Kind::Unreadable {
            continue;
        }
        let start = in_u32(part.start() - leaf.start());
        let length = in_u32(part.len());
        match stretches.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += length,
            _ => stretches.push((start, length)),
        }
    }
    stretches
}

/// The leaves of `range`, which begins on the grid.
pub(super) fn leaves(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let count = range.len().div_ceil(LEAF);
    (0..count).filter_map(move |index| {
        let start = range.start() + index * LEAF;
        ByteRange::from_bounds(start, range.end().min(start + LEAF))
    })
}

/// Hashes of the leaves of plain bytes.
pub(super) fn data_leaves(range: ByteRange, plain: &[u8], records: &[Record]) -> Vec<blake3::Hash> {
    leaves(range)
        .map(|leaf| {
            let bytes =
                &plain[in_memory(leaf.start() - range.start())..in_memory(leaf.end() - range.start())];
            leaf_hash(bytes, &unreadable_in(records, leaf))
        })
        .collect()
}

/// The hash of a leaf of zeroes that sorted records describe; `zeroes` has a leaf of them, or all that there are.
pub(super) fn zero_leaf(leaf: ByteRange, zeroes: &[u8], records: &[Record]) -> blake3::Hash {
    let stretches = unreadable_in(records, leaf);
    if stretches.is_empty() && leaf.len() == LEAF {
        *ZERO_LEAF_HASH
    } else {
        leaf_hash(&zeroes[..in_memory(leaf.len())], &stretches)
    }
}

/// Collects leaf hashes in volume order.
#[derive(Clone)]
pub(super) struct RootHasher {
    hasher: blake3::Hasher,
    leaves: u64,
}

impl RootHasher {
    pub(super) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key(ROOT_CONTEXT),
            leaves: 0,
        }
    }

    pub(super) fn leaf(&mut self, hash: &blake3::Hash) {
        self.hasher.update(hash.as_bytes());
        self.leaves += 1;
    }

    fn repeat(&mut self, hash: &blake3::Hash, count: u64) {
        // 64 KiB at a time: BLAKE3 runs at full width, and a hole of 1 TiB is 16 million leaves.
        const BATCH: u64 = 2048;
        if count >= BATCH {
            let batch = hash.as_bytes().repeat(in_memory(BATCH));
            for _ in 0..count / BATCH {
                self.hasher.update(&batch);
            }
        }
        for _ in 0..count % BATCH {
            self.hasher.update(hash.as_bytes());
        }
        self.leaves += count;
    }

    /// The leaves of a stretch without data, which `records` tile.
    pub(super) fn zero_leaves(&mut self, range: ByteRange, records: &[Record]) {
        let mut at = range.start();
        let mut next = 0;
        while at < range.end() {
            while records[next].range.end() <= at {
                next += 1;
            }
            // Records of one readability may follow each other: leaves inside one record are the common case, leaves
            // that several share are hashed one by one.
            let whole = (records[next].range.end().min(range.end()) - at) / LEAF;
            if whole > 0 {
                let hash = if records[next].kind == Kind::Unreadable {
                    &*UNREADABLE_LEAF_HASH
                } else {
                    &*ZERO_LEAF_HASH
                };
                self.repeat(hash, whole);
                at += whole * LEAF;
            } else if let Some(leaf) = ByteRange::from_bounds(at, range.end().min(at + LEAF)) {
                let stretches = unreadable_in(&records[next..], leaf);
                if stretches.is_empty() && leaf.len() == LEAF {
                    self.leaf(&ZERO_LEAF_HASH);
                } else {
                    self.leaf(&leaf_hash(&ZERO_LEAF[..in_memory(leaf.len())], &stretches));
                }
                at = leaf.end();
            }
        }
    }

    /// The root of a volume of `size` bytes.
    ///
    /// # Panics
    /// The leaves are not those of such a volume: writer and reader count both.
    pub(super) fn finish(mut self, size: u64) -> Root {
        assert_eq!(
            self.leaves,
            size.div_ceil(LEAF),
            "every leaf is hashed exactly once"
        );
        self.hasher.update(&size.to_le_bytes());
        Root(*self.hasher.finalize().as_bytes())
    }
}
