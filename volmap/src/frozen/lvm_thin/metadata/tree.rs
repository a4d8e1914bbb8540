//! Walking btrees: to one key, or through all leaves.

use super::limits::LEVELS_MAX;
use super::node::{KeyRange, Node};
use super::{BlockSource, MetadataError};

/// A tree on some device.
pub(super) struct Tree<'a, S: ?Sized> {
    source: &'a S,
    root: u64,
    value_size: usize,
}

/// A node that has to be looked at.
#[derive(Clone, Copy, Debug)]
struct Pending {
    block: u64,
    range: KeyRange,
}

/// What is known of a node that was looked at.
enum Seen<T> {
    Leaf(T),
    Inner(Vec<Pending>),
}

impl<'a, S: BlockSource + ?Sized> Tree<'a, S> {
    /// The tree under `root`, whose leaves hold values of `value_size` bytes.
    pub(super) fn new(source: &'a S, root: u64, value_size: usize) -> Self {
        Self {
            source,
            root,
            value_size,
        }
    }

    /// The value under one key.
    ///
    /// # Errors
    /// [`MetadataError`].
    pub(super) fn find(self, key: u64) -> Result<Option<Vec<u8>>, MetadataError> {
        let mut next = self.top();
        for level in 0..LEVELS_MAX {
            let mut found = None;
            self.see(&[next], level, &mut |_, node| {
                let entry = node.entry_for(key);
                found = Some(match entry {
                    _ if node.is_leaf() => {
                        let exact = entry.filter(|&entry| node.key(entry) == key);
                        Seen::Leaf(exact.map(|entry| node.value(entry).to_owned()))
                    }
                    Some(entry) => Seen::Inner(vec![under(node, entry)]),
                    None => Seen::Leaf(None),
                });
                Ok(())
            })?;
            match found {
                Some(Seen::Inner(below)) => next = below[0],
                Some(Seen::Leaf(value)) => return Ok(value),
                None => break,
            }
        }
        Err(self.endless())
    }

    /// What `read` makes of every leaf, in the order of their keys. The blocks of a level are read in the order in which they lie on
    /// the device: neighbours in a tree are none there, once it has lived.
    ///
    /// # Errors
    /// [`MetadataError`], and what `read` says.
    pub(super) fn leaves<T>(
        self,
        mut read: impl FnMut(&Node<'_>) -> Result<T, MetadataError>,
    ) -> Result<Vec<T>, MetadataError> {
        let mut nodes_left = self.source.blocks();
        let mut level = vec![self.top()];
        for depth in 0..LEVELS_MAX {
            // No tree has more nodes than its device has blocks.
            nodes_left = (nodes_left.checked_sub(level.len() as u64)).ok_or_else(|| self.endless())?;
            let mut seen: Vec<Option<Seen<T>>> = level.iter().map(|_| None).collect();
            let mut children_left = nodes_left;
            self.see(&level, depth, &mut |position, node| {
                seen[position] = Some(if node.is_leaf() {
                    Seen::Leaf(read(node)?)
                } else {
                    children_left = (children_left.checked_sub(node.entries().len() as u64))
                        .ok_or(MetadataError::Endless { root: self.root })?;
                    Seen::Inner(node.entries().map(|entry| under(node, entry)).collect())
                });
                Ok(())
            })?;
            let (mut leaves, mut below) = (Vec::new(), Vec::new());
            for node in seen.into_iter().flatten() {
                match node {
                    Seen::Leaf(leaf) => leaves.push(leaf),
                    Seen::Inner(children) => below.extend(children),
                }
            }
            match (leaves.is_empty(), below.is_empty()) {
                (false, true) => return Ok(leaves),
                (true, false) => level = below,
                _ => return Err(MetadataError::Uneven { root: self.root }),
            }
        }
        Err(self.endless())
    }

    fn top(&self) -> Pending {
        Pending {
            block: self.root,
            range: KeyRange::ALL,
        }
    }

    fn endless(&self) -> MetadataError {
        MetadataError::Endless { root: self.root }
    }

    /// Shows nodes of one level, in any order, each with its position in the list.
    fn see(
        &self,
        level: &[Pending],
        depth: usize,
        look: &mut dyn FnMut(usize, &Node<'_>) -> Result<(), MetadataError>,
    ) -> Result<(), MetadataError> {
        let mut order: Vec<usize> = (0..level.len()).collect();
        order.sort_unstable_by_key(|&position| level[position].block);
        let blocks: Vec<u64> = order.iter().map(|&position| level[position].block).collect();
        within(self.source, &blocks)?;
        self.source.show(&blocks, &mut |nth, bytes| {
            let position = order[nth];
            let Pending { block, range } = level[position];
            let node = Node::parse(block, bytes, self.value_size, range, depth == 0)?;
            look(position, &node)
        })
    }
}

fn under(node: &Node<'_>, entry: usize) -> Pending {
    Pending {
        block: node.number(entry),
        range: node.keys_under(entry),
    }
}

/// Refuses blocks that the device does not have; they are in rising order.
pub(super) fn within<S: BlockSource + ?Sized>(source: &S, blocks: &[u64]) -> Result<(), MetadataError> {
    match blocks.last() {
        Some(&block) if block >= source.blocks() => Err(MetadataError::Outside { block }),
        _ => Ok(()),
    }
}
