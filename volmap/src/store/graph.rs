//! Stores, what lies under them, and the walk down.

use std::fmt;

use super::{Segment, Stripes};
use crate::identity::Identity;

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

/// What lies under a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Below {
    /// Nothing: the store is a disk, and its addresses are what a second machine reads.
    Disk,
    /// Sorted, disjoint segments; between them the store has no location.
    Segments(Vec<Segment>),
    /// The same of pieces that are dealt out over several places each.
    Striped(Vec<Stripes>),
    /// Not understood or not allowed to be mapped, with the reason for the operator.
    Opaque(String),
}

/// Where a byte of a store leads.
enum Step {
    /// To a place below, from where on this many bytes lie in one piece.
    Down(Place, u64),
    /// Nowhere, and so do this many bytes.
    Gap(u64),
}

impl Below {
    /// Every store that a piece lies on; more than once, where several do.
    pub fn stores(&self) -> impl Iterator<Item = StoreId> {
        let (segments, striped): (&[Segment], &[Stripes]) = match self {
            Self::Segments(segments) => (segments, &[]),
            Self::Striped(pieces) => (&[], pieces),
            Self::Disk | Self::Opaque(_) => (&[], &[]),
        };
        let of_segments = segments.iter().map(|s| s.below.store);
        let of_stripes = striped.iter().flat_map(|p| p.columns().map(|(store, _)| store));
        of_segments.chain(of_stripes)
    }

    fn is_sorted(&self) -> bool {
        match self {
            Self::Segments(segments) => segments
                .windows(2)
                .all(|pair| pair[0].range.end() <= pair[1].range.start()),
            Self::Striped(pieces) => pieces
                .windows(2)
                .all(|pair| pair[0].range().end() <= pair[1].range().start()),
            Self::Disk | Self::Opaque(_) => true,
        }
    }

    /// The piece of a byte, if there is one.
    fn step(&self, offset: u64) -> Step {
        let gap = |start: Option<u64>| Step::Gap(start.map_or(u64::MAX, |start| start - offset));
        match self {
            Self::Segments(segments) => {
                let next = segments.partition_point(|s| s.range.end() <= offset);
                match segments.get(next) {
                    Some(segment) if segment.range.contains(offset) => {
                        let below = Place {
                            store: segment.below.store,
                            offset: segment.below.offset + (offset - segment.range.start()),
                        };
                        Step::Down(below, segment.range.end() - offset)
                    }
                    behind => gap(behind.map(|s| s.range.start())),
                }
            }
            Self::Striped(pieces) => {
                let next = pieces.partition_point(|p| p.range().end() <= offset);
                match pieces.get(next) {
                    Some(piece) if piece.range().contains(offset) => {
                        let (below, run) = piece.locate(offset);
                        Step::Down(below, run)
                    }
                    behind => gap(behind.map(|p| p.range().start())),
                }
            }
            Self::Disk | Self::Opaque(_) => gap(None),
        }
    }
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
    /// Logical block size in bytes, where it is a block device that says so.
    pub block_size: Option<u32>,
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
    /// A piece of the store names a store that is not in the graph yet, pieces overlap, or there are more than
    /// 65,535 stores: mistakes of the caller.
    pub fn add(&mut self, store: Store) -> StoreId {
        let known = self
            .stores
            .iter()
            .position(|s| s.identity == store.identity && s.kind == store.kind);
        assert!(
            store.below.stores().all(|id| id.index() < self.stores.len()),
            "lower stores come first"
        );
        assert!(store.below.is_sorted(), "pieces are sorted and disjoint");
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

    /// The stores that chains end on: what names one of them for good is its identity, its size and its block size.
    pub fn disks(&self) -> impl Iterator<Item = &Store> {
        self.stores.iter().filter(|s| s.below == Below::Disk)
    }

    /// Whether any chain ends on a disk.
    pub fn reaches_disk(&self) -> bool {
        self.disks().next().is_some()
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
                Below::Segments(_) | Below::Striped(_) => match store.below.step(at.offset) {
                    Step::Down(below, run) => {
                        resolved.len = resolved.len.min(run);
                        resolved.chain.push(below);
                        at = below;
                    }
                    Step::Gap(run) => {
                        resolved.len = resolved.len.min(run);
                        resolved.opaque = Some(format!("{} has no location here", store.identity));
                        return resolved;
                    }
                },
            }
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::ByteRange;

    fn store(kind: StoreKind, name: &str, size: u64, below: Below) -> Store {
        Store {
            kind,
            identity: Identity::new("id", name).unwrap(),
            label: name.into(),
            size,
            block_size: None,
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
    fn the_disks_are_those_that_a_chain_ends_on() {
        let mut graph = StoreGraph::new();
        let disk = Store {
            block_size: Some(4096),
            ..store(StoreKind::Disk, "d", 1 << 20, Below::Disk)
        };
        let id = graph.add(disk.clone());
        graph.add(store(StoreKind::Disk, "md0", 1 << 20, Below::Opaque("md".into())));
        graph.add(store(
            StoreKind::File,
            "f",
            4096,
            Below::Segments(vec![segment(0, 4096, id, 0)]),
        ));
        assert_eq!(graph.disks().collect::<Vec<_>>(), [&disk]);
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
}
