//! One node of a btree.

use std::ops::Range;

use super::source::{u32_at, u64_at};
use super::{BLOCK_SIZE, MetadataError, checksum};

const CHECKSUM_XOR: u32 = 121_107;
const KEY_SIZE: usize = 8;
/// The number of a block: what inner nodes hold, and both levels of the mapping tree.
pub(super) const NUMBER_SIZE: usize = 8;

/// Byte offsets of `struct node_header` in the kernel's `dm-btree-internal.h`; keys follow, then values, each with room for
/// `max_entries`.
mod at {
    pub(super) const FLAGS: usize = 4;
    pub(super) const ENTRIES: usize = 16;
    pub(super) const MAX_ENTRIES: usize = 20;
    pub(super) const VALUE_SIZE: usize = 24;
    pub(super) const KEYS: usize = 32;
}

const INNER: u32 = 1;
const LEAF: u32 = 2;

/// Keys that a node may hold: from `start`, and below `end` where there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KeyRange {
    pub(super) start: u64,
    pub(super) end: Option<u64>,
}

impl KeyRange {
    pub(super) const ALL: Self = Self { start: 0, end: None };
}

/// A node that was checked: everything that its methods touch lies within the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    bytes: &'a [u8],
    is_leaf: bool,
    entries: usize,
    values: usize,
    value_size: usize,
    range: KeyRange,
}

impl<'a> Node<'a> {
    /// Reads the node that was found as `block`, of a tree whose leaves hold values of `value_size` bytes, where keys of `range` are
    /// looked for. `is_root`: only a root may be empty.
    ///
    /// # Errors
    /// It is no such node.
    pub(super) fn parse(
        block: u64,
        bytes: &'a [u8],
        value_size: usize,
        range: KeyRange,
        is_root: bool,
    ) -> Result<Self, MetadataError> {
        checksum::check(block, bytes, CHECKSUM_XOR)?;
        let wrong = |why| Err(MetadataError::Node { block, why });
        let number = |at| usize::try_from(u32_at(bytes, at)).unwrap_or(usize::MAX);
        let (is_leaf, expected_size) = match u32_at(bytes, at::FLAGS) {
            INNER => (false, NUMBER_SIZE),
            LEAF => (true, value_size),
            _ => return wrong("it is neither a leaf nor an inner node"),
        };
        let (entries, max_entries) = (number(at::ENTRIES), number(at::MAX_ENTRIES));
        if number(at::VALUE_SIZE) != expected_size {
            return wrong("its values have another size");
        }
        if max_entries > (BLOCK_SIZE - at::KEYS) / (KEY_SIZE + expected_size) || entries > max_entries {
            return wrong("it has more entries than room");
        }
        if entries == 0 && !(is_root && is_leaf) {
            return wrong("it is empty");
        }
        let node = Self {
            bytes,
            is_leaf,
            entries,
            values: at::KEYS + max_entries * KEY_SIZE,
            value_size: expected_size,
            range,
        };
        let mut least = Some(range.start);
        for entry in 0..entries {
            let key = node.key(entry);
            if least.is_none_or(|least| key < least) {
                return wrong("its keys do not rise, or begin before those of the node above");
            }
            if range.end.is_some_and(|end| key >= end) {
                return wrong("its keys reach into those of its neighbour");
            }
            least = key.checked_add(1);
        }
        Ok(node)
    }

    /// Whether values are what the tree holds, not blocks of the level below.
    pub(super) fn is_leaf(&self) -> bool {
        self.is_leaf
    }

    /// Positions of entries.
    pub(super) fn entries(&self) -> Range<usize> {
        0..self.entries
    }

    /// The key of an entry.
    pub(super) fn key(&self, entry: usize) -> u64 {
        u64_at(self.bytes, at::KEYS + entry * KEY_SIZE)
    }

    /// The value of an entry.
    pub(super) fn value(&self, entry: usize) -> &'a [u8] {
        let start = self.values + entry * self.value_size;
        &self.bytes[start..start + self.value_size]
    }

    /// The value of an entry that is a number: of every inner node, and of both levels of the mapping tree.
    pub(super) fn number(&self, entry: usize) -> u64 {
        u64_at(self.value(entry), 0)
    }

    /// The keys that may lie under an entry of an inner node.
    pub(super) fn keys_under(&self, entry: usize) -> KeyRange {
        let next = entry + 1;
        KeyRange {
            start: self.key(entry),
            end: if next < self.entries {
                Some(self.key(next))
            } else {
                self.range.end
            },
        }
    }

    /// The last entry whose key is not above `key`.
    pub(super) fn entry_for(&self, key: u64) -> Option<usize> {
        let mut entries = 0..self.entries;
        while !entries.is_empty() {
            let middle = entries.start + entries.len() / 2;
            if self.key(middle) <= key {
                entries.start = middle + 1;
            } else {
                entries.end = middle;
            }
        }
        entries.start.checked_sub(1)
    }
}
