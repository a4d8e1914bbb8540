//! Stores, and the graph that leads from a frozen image down to its disks.
//!
//! A chain of extents is found by walking: a [`Place`] in one store falls into a [`Segment`] of that store, which
//! names a place in the store below, until a disk is reached. Whatever is not understood ends the walk in
//! [`Below::Opaque`], and the bytes are then read over NBD.

use std::fmt;

use crate::identity::Identity;
use crate::range::ByteRange;

/// Index of a store in its [`StoreGraph`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StoreId(u16);

impl StoreId {
    /// Position in [`StoreGraph::stores`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// An address: a byte offset in a store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The store.
    pub store: StoreId,
    /// Byte offset in it.
    pub offset: u64,
}

/// What a store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreKind {
    /// A file.
    File,
    /// A file system, addressed by bytes of its device.
    FileSystem,
    /// A device-mapper device.
    DeviceMapper,
    /// A partition.
    Partition,
    /// A loop device.
    Loop,
    /// A disk: what a LUN is.
    Disk,
}

impl StoreKind {
    /// The word for it in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::FileSystem => "file-system",
            Self::DeviceMapper => "device-mapper",
            Self::Partition => "partition",
            Self::Loop => "loop",
            Self::Disk => "disk",
        }
    }
}

/// One linear piece of a store: `range` of it lies at `offset` of the store `below`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Bytes of the upper store.
    pub range: ByteRange,
    /// Where its first byte lies.
    pub below: Place,
}

/// What lies under a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Below {
    /// Nothing: the store is a disk, and its addresses are what a second machine reads.
    Disk,
    /// Sorted, disjoint segments; between them the store has no location.
    Segments(Vec<Segment>),
    /// Not understood or not allowed to be mapped, with the reason for the operator.
    Opaque(String),
}

/// One thing in a chain that holds extents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    /// What it is.
    pub kind: StoreKind,
    /// Its name for good.
    pub identity: Identity,
    /// Where an operator finds it: a path or device name. For people; a difference in it may only take locations away.
    pub label: String,
    /// Size in bytes.
    pub size: u64,
    /// What lies under it.
    pub below: Below,
}

/// The stores of a frozen image, lower ones before those that stand on them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreGraph {
    stores: Vec<Store>,
}

/// A stretch of bytes that lies in one piece in every store of its chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// Bytes, at least 1.
    pub len: u64,
    /// The chain, uppermost place first. The last one is the disk, unless `opaque`.
    pub chain: Vec<Place>,
    /// Why the chain ends above a disk.
    pub opaque: Option<String>,
}

impl Resolved {
    /// The place on a disk, if the chain reaches one.
    pub fn disk(&self) -> Option<Place> {
        if self.opaque.is_some() {
            None
        } else {
            self.chain.last().copied()
        }
    }
}

impl StoreGraph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a store, or finds the one that is already there under the same identity and kind.
    ///
    /// # Panics
    /// A segment of the store names a store that is not in the graph yet, segments overlap, or there are more than
    /// 65,535 stores: mistakes of the caller.
    pub fn add(&mut self, store: Store) -> StoreId {
        let known = self
            .stores
            .iter()
            .position(|s| s.identity == store.identity && s.kind == store.kind);
        if let Below::Segments(segments) = &store.below {
            assert!(
                segments.iter().all(|s| s.below.store.index() < self.stores.len()),
                "lower stores come first"
            );
            assert!(
                segments
                    .windows(2)
                    .all(|pair| pair[0].range.end() <= pair[1].range.start()),
                "segments are sorted and disjoint"
            );
        }
        let index = known.unwrap_or_else(|| {
            self.stores.push(store);
            self.stores.len() - 1
        });
        StoreId(u16::try_from(index).expect("at most 65,535 stores"))
    }

    /// The store of that kind and identity, if it is there.
    pub fn find(&self, kind: StoreKind, identity: &Identity) -> Option<&Store> {
        self.stores
            .iter()
            .find(|s| s.kind == kind && s.identity == *identity)
    }

    /// All stores, lower ones first.
    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// One store.
    pub fn store(&self, id: StoreId) -> &Store {
        &self.stores[id.index()]
    }

    /// Whether any chain ends on a disk.
    pub fn reaches_disk(&self) -> bool {
        self.stores.iter().any(|s| s.below == Below::Disk)
    }

    /// The id of every store, lower ones first.
    pub fn ids(&self) -> impl Iterator<Item = StoreId> {
        (0..self.stores.len()).map(|index| StoreId(u16::try_from(index).expect("at most 65,535 stores")))
    }

    /// Follows `len` bytes (not 0) from `place` down to the disk: the first stretch of them that lies in one piece.
    /// Call again behind it for the rest.
    pub fn resolve(&self, place: Place, len: u64) -> Resolved {
        assert!(len > 0, "an empty stretch has no chain");
        let mut resolved = Resolved {
            len,
            chain: vec![place],
            opaque: None,
        };
        let mut at = place;
        loop {
            let store = self.store(at.store);
            match &store.below {
                Below::Disk => {
                    if at
                        .offset
                        .checked_add(resolved.len)
                        .is_none_or(|end| end > store.size)
                    {
                        resolved.opaque = Some(format!("{} ends before this extent does", store.identity));
                    }
                    return resolved;
                }
                Below::Opaque(reason) => {
                    resolved.opaque = Some(reason.clone());
                    return resolved;
                }
                Below::Segments(segments) => {
                    let next = segments.partition_point(|s| s.range.end() <= at.offset);
                    let Some(segment) = segments.get(next) else {
                        resolved.opaque = Some(format!("{} has no location here", store.identity));
                        return resolved;
                    };
                    if !segment.range.contains(at.offset) {
                        resolved.len = resolved.len.min(segment.range.start() - at.offset);
                        resolved.opaque = Some(format!("{} has no location here", store.identity));
                        return resolved;
                    }
                    resolved.len = resolved.len.min(segment.range.end() - at.offset);
                    at = Place {
                        store: segment.below.store,
                        offset: segment.below.offset + (at.offset - segment.range.start()),
                    };
                    resolved.chain.push(at);
                }
            }
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Joins segments that continue each other in both address spaces, so that equal mappings compare equal.
pub fn normalise_segments(segments: &mut Vec<Segment>) {
    segments.dedup_by(|next, kept| {
        let gap_free = kept.range.end() == next.range.start() && kept.below.store == next.below.store;
        let joins = gap_free && kept.below.offset + kept.range.len() == next.below.offset;
        if joins && let Some(joined) = ByteRange::from_bounds(kept.range.start(), next.range.end()) {
            kept.range = joined;
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(kind: StoreKind, name: &str, size: u64, below: Below) -> Store {
        Store {
            kind,
            identity: Identity::new("id", name).unwrap(),
            label: name.into(),
            size,
            below,
        }
    }

    fn segment(start: u64, len: u64, store: StoreId, offset: u64) -> Segment {
        Segment {
            range: ByteRange::new(start, len).unwrap(),
            below: Place { store, offset },
        }
    }

    #[test]
    fn a_chain_is_cut_where_any_layer_is() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "d", 10_000, Below::Disk));
        let fs = graph.add(store(
            StoreKind::FileSystem,
            "fs",
            5000,
            Below::Segments(vec![
                segment(0, 1500, disk, 1000),
                segment(1500, 3500, disk, 4000),
            ]),
        ));
        let file = graph.add(store(
            StoreKind::File,
            "f",
            3000,
            Below::Segments(vec![segment(0, 2000, fs, 1000)]),
        ));

        let first = graph.resolve(
            Place {
                store: file,
                offset: 100,
            },
            1900,
        );
        assert_eq!(first.len, 400);
        assert_eq!(
            first.chain.iter().map(|p| p.offset).collect::<Vec<_>>(),
            [100, 1100, 2100]
        );
        assert_eq!(
            first.disk(),
            Some(Place {
                store: disk,
                offset: 2100
            })
        );
        let second = graph.resolve(
            Place {
                store: file,
                offset: 500,
            },
            1500,
        );
        assert_eq!(
            (second.len, second.disk()),
            (
                1500,
                Some(Place {
                    store: disk,
                    offset: 4000
                })
            )
        );
        let beyond = graph.resolve(
            Place {
                store: file,
                offset: 2000,
            },
            1000,
        );
        assert_eq!((beyond.len, beyond.disk()), (1000, None));
    }

    #[test]
    fn an_extent_past_the_end_of_its_disk_is_never_direct() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "d", 4096, Below::Disk));
        assert!(
            graph
                .resolve(
                    Place {
                        store: disk,
                        offset: 0
                    },
                    4096
                )
                .disk()
                .is_some()
        );
        assert!(
            graph
                .resolve(
                    Place {
                        store: disk,
                        offset: 1
                    },
                    4096
                )
                .disk()
                .is_none()
        );
        assert!(
            graph
                .resolve(
                    Place {
                        store: disk,
                        offset: u64::MAX
                    },
                    4096
                )
                .disk()
                .is_none()
        );
    }

    #[test]
    fn neighbours_join_only_where_both_sides_continue() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "d", 10_000, Below::Disk));
        let mut segments = vec![
            segment(0, 10, disk, 0),
            segment(10, 10, disk, 10),
            segment(20, 10, disk, 50),
            segment(40, 1, disk, 60),
        ];
        normalise_segments(&mut segments);
        assert_eq!(
            segments,
            [
                segment(0, 20, disk, 0),
                segment(20, 10, disk, 50),
                segment(40, 1, disk, 60)
            ]
        );
    }
}
