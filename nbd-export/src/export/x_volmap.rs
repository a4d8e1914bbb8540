//! From extents to metadata contexts (docs/x-volmap.md): the one place that knows both vocabularies.

use std::sync::Arc;

use uuid::Uuid;
use volmap::frozen::{ChangedMap, StatusExtent};
use volmap::identity::Identity;
use volmap::map::Content;
use volmap::range::ByteRange;
use volmap::store::{Below, Place, Reach, StoreGraph, StoreId};

use super::limits::{CHANGED_PIECES_LOOKED_AT, STRETCHES_MAX};
use super::model::{BASE_ALLOCATION, BlockStatus, Context, ContextIndex, ContextStatus};
use crate::proto::Descriptor;

/// Set in a status that carries an address; the other bits are the address.
const LOCATED: u64 = 1 << 63;
/// `base:allocation`: not allocated.
const STATE_HOLE: u64 = 1;
/// `base:allocation`: reads as zeroes.
const STATE_ZERO: u64 = 2;

/// The status of `base:allocation` for a content.
pub(super) fn base_allocation(content: Content) -> u64 {
    match content {
        Content::Data => 0,
        Content::Zero => STATE_ZERO,
        Content::Hole => STATE_HOLE | STATE_ZERO,
    }
}

/// What a context tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Allocation,
    Frozen,
    Generation,
    /// The place at this depth of the chain, where it lies in one of the stores of this name.
    Store {
        depth: usize,
        name: usize,
    },
    /// The place on this disk.
    Disk(StoreId),
    /// The place in a store that nothing lies in any more.
    Left,
    /// What changed since this parent.
    Changed(usize),
}

/// An older frozen image of the same volume, and what changed since.
#[derive(Debug)]
pub struct Parent {
    /// The older frozen image.
    pub uuid: Uuid,
    /// Of the size of the newer one.
    pub changed: ChangedMap,
}

/// The contexts of one frozen image (or tag), and how each is computed.
#[derive(Debug)]
pub(super) struct ContextTable {
    contexts: Vec<Context>,
    meanings: Vec<Meaning>,
    /// For every store, which stores carry the same name: the first of them.
    namesakes: Vec<usize>,
    reach: Reach,
    parents: Arc<[Parent]>,
}

impl ContextTable {
    /// `base:allocation`, the frozen identity if there is one, the generation, a context for every disk that a
    /// store of the graph reaches and for every store above at every depth that it is reached at.
    pub(super) fn new(graph: &StoreGraph, frozen: Option<Uuid>) -> Self {
        let mut table = Self {
            contexts: Vec::new(),
            meanings: Vec::new(),
            namesakes: namesakes(graph),
            reach: Reach::of(graph),
            parents: Arc::default(),
        };
        table.contexts.push(Context {
            name: BASE_ALLOCATION.to_owned(),
            extended: false,
        });
        table.meanings.push(Meaning::Allocation);
        if let Some(uuid) = frozen {
            table.offer(format!("x-volmap:frozen:{uuid}"), Meaning::Frozen);
        }
        table.offer("x-volmap:generation".to_owned(), Meaning::Generation);
        table.offer_stores(graph);
        table
    }

    /// The same for other stores. Every context keeps its position: connections have selected by it. New ones come behind.
    pub(super) fn on(&self, graph: &StoreGraph) -> Self {
        let meaning = |meaning: &Meaning| match meaning {
            Meaning::Store { .. } | Meaning::Disk(_) => Meaning::Left,
            other => *other,
        };
        let mut table = Self {
            contexts: self.contexts.clone(),
            meanings: self.meanings.iter().map(meaning).collect(),
            namesakes: namesakes(graph),
            reach: Reach::of(graph),
            parents: Arc::clone(&self.parents),
        };
        table.offer_stores(graph);
        table
    }

    fn offer_stores(&mut self, graph: &StoreGraph) {
        for (depth, id) in depths(graph) {
            let store = graph.store(id);
            if matches!(store.below, Below::Disk) {
                self.offer(format!("x-volmap:disk:{}", store.identity), Meaning::Disk(id));
            } else {
                let name = self.namesakes[id.index()];
                self.offer(
                    format!("x-volmap:store:{depth}:{}", store.identity),
                    Meaning::Store { depth, name },
                );
            }
        }
    }

    /// With a context for every parent.
    pub(super) fn since(mut self, parents: Vec<Parent>) -> Self {
        for (nth, parent) in parents.iter().enumerate() {
            self.offer(format!("x-volmap:changed:{}", parent.uuid), Meaning::Changed(nth));
        }
        self.parents = parents.into();
        self
    }

    /// The frozen images that changes are known since.
    pub(super) fn parents(&self) -> impl Iterator<Item = Uuid> {
        self.parents.iter().map(|parent| parent.uuid)
    }

    /// Whether one of the contexts tells of where the bytes lie.
    pub(super) fn shows_places(&self, selected: &[ContextIndex]) -> bool {
        selected.iter().any(|index| self.meanings[index.0].is_of_places())
    }

    fn offer(&mut self, name: String, meaning: Meaning) {
        match self.contexts.iter().position(|known| known.name == name) {
            Some(known) => self.meanings[known] = meaning,
            None => {
                self.contexts.push(Context { name, extended: true });
                self.meanings.push(meaning);
            }
        }
    }

    /// All contexts; a [`ContextIndex`] is a position here.
    pub(super) fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// What the selected contexts say of `extents`, at most `limit` descriptors in each. Chains are followed only
    /// if a context is selected that shows them.
    ///
    /// # Panics
    /// A selected context is not in the table: a mistake of the caller.
    pub(super) fn answer(
        &self,
        graph: &StoreGraph,
        extents: &[StatusExtent],
        selected: &[ContextIndex],
        limit: usize,
    ) -> BlockStatus {
        let meanings: Vec<Meaning> = selected.iter().map(|index| self.meanings[index.0]).collect();
        let follow = meanings
            .iter()
            .any(|m| matches!(m, Meaning::Store { .. } | Meaning::Disk(_)));
        let mut columns: Vec<Column> = meanings.iter().map(|m| Column::new(m.is_address())).collect();
        if let Some(range) = covered(extents) {
            for (column, meaning) in columns.iter_mut().zip(&meanings) {
                if let Meaning::Changed(nth) = meaning {
                    let changed = &self.parents[*nth].changed;
                    let looked_at = CHANGED_PIECES_LOOKED_AT.saturating_mul(changed.granule());
                    let end = range.start().saturating_add(looked_at).min(range.end());
                    let looked_at = ByteRange::from_bounds(range.start(), end).unwrap_or(range);
                    column.append_all(changed.within(looked_at).take(limit));
                }
            }
        }
        let mut stretches = 0;
        for extent in extents {
            let mut rest = self.first_stretch(graph, extent, 0, follow);
            let mut done = 0;
            loop {
                if stretches == STRETCHES_MAX || columns.iter().any(|c| c.descriptors.len() > limit) {
                    return finish(selected, columns, limit);
                }
                stretches += 1;
                for (column, meaning) in columns.iter_mut().zip(&meanings) {
                    if let Some(status) = self.status(extent, &rest, *meaning) {
                        column.append(rest.len, status);
                    }
                }
                done += rest.len;
                if done == extent.range.len() {
                    break;
                }
                rest = self.first_stretch(graph, extent, done, follow);
            }
        }
        finish(selected, columns, limit)
    }

    /// The first stretch behind `done` bytes of `extent` that is of one piece in everything that is shown of it.
    fn first_stretch(&self, graph: &StoreGraph, extent: &StatusExtent, done: u64, follow: bool) -> Stretch {
        let len = extent.range.len() - done;
        let Some(place) = extent.place else {
            // Zeroes need no location to be read without the host; data does.
            return Stretch {
                len,
                direct: extent.content != Content::Data,
                chain: Vec::new(),
            };
        };
        let place = Place {
            store: place.store,
            offset: place.offset + done,
        };
        let (direct, len) = self.reach.at(place, len);
        if !follow {
            return Stretch {
                len,
                direct,
                chain: Vec::new(),
            };
        }
        let resolved = graph.resolve(place, len);
        Stretch {
            len: resolved.len,
            direct,
            chain: resolved.chain,
        }
    }

    /// `None` where it is not the extent that the status is of.
    fn status(&self, extent: &StatusExtent, stretch: &Stretch, meaning: Meaning) -> Option<u64> {
        let located = |place: &Place| {
            if place.offset < LOCATED {
                LOCATED | place.offset
            } else {
                0
            }
        };
        Some(match meaning {
            Meaning::Allocation => base_allocation(extent.content),
            Meaning::Frozen => 0,
            Meaning::Changed(_) => return None,
            Meaning::Generation if stretch.direct => extent.generation.to_wire(),
            Meaning::Generation => 0,
            // Generation 0 is "never direct": a location beside it would only invite a read that cannot be validated.
            Meaning::Disk(disk) if stretch.direct && extent.generation.is_direct() => stretch
                .chain
                .last()
                .filter(|place| place.store == disk)
                .map_or(0, located),
            Meaning::Disk(_) | Meaning::Left => 0,
            Meaning::Store { depth, name } => stretch
                .chain
                .get(depth)
                .filter(|place| self.namesakes[place.store.index()] == name)
                .map_or(0, located),
        })
    }
}

/// All that extents cover, which follow each other.
fn covered(extents: &[StatusExtent]) -> Option<ByteRange> {
    ByteRange::from_bounds(extents.first()?.range.start(), extents.last()?.range.end())
}

impl Meaning {
    fn is_address(self) -> bool {
        matches!(self, Self::Store { .. } | Self::Disk(_))
    }

    fn is_of_places(self) -> bool {
        matches!(self, Self::Generation | Self::Left) || self.is_address()
    }
}

/// Bytes of an extent that are of one piece in every store that is looked at.
struct Stretch {
    len: u64,
    /// Whether a proxy can have them without the host: they reach a disk, or are zeroes.
    direct: bool,
    chain: Vec<Place>,
}

/// The descriptors of one context while they are made.
struct Column {
    address: bool,
    descriptors: Vec<Descriptor>,
}

impl Column {
    fn new(address: bool) -> Self {
        Self {
            address,
            descriptors: Vec::new(),
        }
    }

    fn append_all(&mut self, parts: impl Iterator<Item = (ByteRange, bool)>) {
        for (part, changed) in parts {
            self.append(part.len(), u64::from(changed));
        }
    }

    fn append(&mut self, len: u64, status: u64) {
        if let Some(last) = self.descriptors.last_mut() {
            // A status with an address is that of the descriptor's first byte, so the next one continues it only at
            // the address behind its last byte.
            let continued = if self.address && last.status & LOCATED != 0 {
                last.status.checked_add(last.length)
            } else {
                Some(last.status)
            };
            if continued == Some(status) {
                last.length += len;
                return;
            }
        }
        self.descriptors.push(Descriptor { length: len, status });
    }
}

/// Cuts every context at `limit` descriptors and then at the shortest of them, so that all cover the same bytes; with a
/// limit of 1 each keeps its own length, as a client that asked for one descriptor expects no other cut.
fn finish(selected: &[ContextIndex], columns: Vec<Column>, limit: usize) -> BlockStatus {
    let mut answer: BlockStatus = selected
        .iter()
        .zip(columns)
        .map(|(context, mut column)| {
            column.descriptors.truncate(limit);
            ContextStatus {
                context: *context,
                descriptors: column.descriptors,
            }
        })
        .collect();
    let covered = answer
        .iter()
        .map(|c| c.descriptors.iter().map(|d| d.length).sum::<u64>())
        .min()
        .unwrap_or(0);
    if limit > 1 {
        for context in &mut answer {
            cut(&mut context.descriptors, covered);
        }
    }
    answer
}

/// Keeps the first `covered` bytes.
fn cut(descriptors: &mut Vec<Descriptor>, covered: u64) {
    let mut rest = covered;
    descriptors.retain_mut(|descriptor| {
        descriptor.length = descriptor.length.min(rest);
        rest -= descriptor.length;
        descriptor.length > 0
    });
}

/// For every store, the first one of the same name.
fn namesakes(graph: &StoreGraph) -> Vec<usize> {
    let stores = graph.stores();
    let first = |identity: &Identity| stores.iter().position(|other| other.identity == *identity);
    let namesakes = stores
        .iter()
        .map(|store| first(&store.identity).unwrap_or_default());
    namesakes.collect()
}

/// Every store at every depth that a chain can meet it at, uppermost first.
fn depths(graph: &StoreGraph) -> Vec<(usize, StoreId)> {
    let below = |id: StoreId| -> Vec<StoreId> {
        let mut found: Vec<StoreId> = Vec::new();
        for store in graph.store(id).below.stores() {
            if !found.contains(&store) {
                found.push(store);
            }
        }
        found
    };
    let children: Vec<Vec<StoreId>> = graph.ids().map(below).collect();
    let mut level: Vec<StoreId> = graph
        .ids()
        .filter(|id| !children.iter().any(|c| c.contains(id)))
        .collect();
    let mut found = Vec::new();
    // A graph of n stores has no chain of more than n: lower stores come first.
    for depth in 0..graph.stores().len() {
        let mut next = Vec::new();
        for id in level {
            found.push((depth, id));
            for child in &children[id.index()] {
                if !next.contains(child) {
                    next.push(*child);
                }
            }
        }
        level = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volmap::generation::Generation;
    use volmap::range::ByteRange;
    use volmap::store::StoreKind;

    use super::super::scripted::{segment, store};
    use super::*;

    /// A file on a file system that is partly on lun0, partly on something opaque; and a copy area on lun1.
    fn two_disks() -> (StoreGraph, StoreId, StoreId) {
        let mut graph = StoreGraph::new();
        let lun0 = graph.add(store(StoreKind::Disk, "lun0", 1 << 40, Below::Disk));
        let lun1 = graph.add(store(StoreKind::Disk, "lun1", 1 << 40, Below::Disk));
        let dark = graph.add(store(
            StoreKind::DeviceMapper,
            "dark",
            1 << 40,
            Below::Opaque("crypt".into()),
        ));
        let fs = graph.add(store(
            StoreKind::FileSystem,
            "fs",
            1 << 30,
            Below::Segments(vec![
                segment(0, 1 << 20, lun0, 0x10_0000),
                segment(1 << 20, 1 << 20, dark, 0),
            ]),
        ));
        let file = graph.add(store(
            StoreKind::File,
            "f",
            1 << 20,
            Below::Segments(vec![segment(0, 8192, fs, 4096), segment(8192, 8192, fs, 1 << 20)]),
        ));
        let area = graph.add(store(
            StoreKind::File,
            "area",
            1 << 20,
            Below::Segments(vec![segment(0, 1 << 20, lun1, 0)]),
        ));
        (graph, file, area)
    }

    fn extent(start: u64, len: u64, content: Content, generation: u64, place: Option<Place>) -> StatusExtent {
        StatusExtent {
            range: ByteRange::new(start, len).unwrap(),
            content,
            generation: Generation::from_wire(generation),
            place,
        }
    }

    fn index(table: &ContextTable, name: &str) -> ContextIndex {
        ContextIndex(table.contexts().iter().position(|c| c.name == name).unwrap())
    }

    fn column(
        table: &ContextTable,
        graph: &StoreGraph,
        extents: &[StatusExtent],
        name: &str,
    ) -> Vec<(u64, u64)> {
        let answer = table.answer(graph, extents, &[index(table, name)], 100);
        answer[0]
            .descriptors
            .iter()
            .map(|d| (d.length, d.status))
            .collect()
    }

    #[test]
    fn contexts_describe_the_whole_graph() {
        let (graph, ..) = two_disks();
        let table = ContextTable::new(&graph, Some(Uuid::nil()));
        let mut names: Vec<&str> = table.contexts().iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.remove(0), "base:allocation");
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "x-volmap:disk:id:lun0",
                "x-volmap:disk:id:lun1",
                "x-volmap:frozen:00000000-0000-0000-0000-000000000000",
                "x-volmap:generation",
                "x-volmap:store:0:id:area",
                "x-volmap:store:0:id:f",
                "x-volmap:store:1:id:fs",
                "x-volmap:store:2:id:dark",
            ]
        );
        assert!(
            table
                .contexts()
                .iter()
                .all(|c| c.extended == (c.name != BASE_ALLOCATION))
        );
    }

    #[test]
    fn contexts_keep_their_positions_when_the_stores_are_others() {
        let (graph, file, _) = two_disks();
        let first = ContextTable::new(&graph, Some(Uuid::nil()));
        let mut moved = StoreGraph::new();
        let disk = moved.add(store(StoreKind::Disk, "lun2", 1 << 40, Below::Disk));
        let below = Below::Segments(vec![segment(0, 1 << 20, disk, 4096)]);
        let top = moved.add(store(StoreKind::File, "f", 1 << 20, below));
        let then = first.on(&moved);
        assert_eq!(then.contexts()[..first.contexts().len()], *first.contexts());
        let new: Vec<&str> = then.contexts()[first.contexts().len()..]
            .iter()
            .map(|c| c.name.as_str())
            .collect();
        assert_eq!(new, ["x-volmap:disk:id:lun2"]);

        let told = |table: &ContextTable, graph: &StoreGraph, store, name| {
            let extents = [extent(
                0,
                4096,
                Content::Data,
                7,
                Some(Place { store, offset: 0 }),
            )];
            column(table, graph, &extents, name)[0].1
        };
        let (lun0, lun2, f) = (
            "x-volmap:disk:id:lun0",
            "x-volmap:disk:id:lun2",
            "x-volmap:store:0:id:f",
        );
        for (name, status) in [
            (lun0, 0),
            (lun2, LOCATED | 4096),
            (f, LOCATED),
            ("x-volmap:generation", 7),
        ] {
            assert_eq!(told(&then, &moved, top, name), status, "{name}");
        }
        // And back again: nothing is offered twice.
        let back = then.on(&graph);
        assert_eq!(back.contexts(), then.contexts());
        for (name, status) in [(lun0, LOCATED | 0x10_1000), (lun2, 0), (f, LOCATED)] {
            assert_eq!(told(&back, &graph, file, name), status, "{name}");
        }
    }

    #[test]
    fn addresses_generations_and_contents_of_one_map() {
        let (graph, file, area) = two_disks();
        let table = ContextTable::new(&graph, None);
        let at = |store, offset| Some(Place { store, offset });
        let extents = [
            extent(0, 16_384, Content::Data, 7, at(file, 0)),
            extent(16_384, 4096, Content::Hole, 7, None),
            extent(20_480, 4096, Content::Data, 9, at(area, 512)),
            extent(24_576, 4096, Content::Data, 0, at(area, 8192)),
            extent(28_672, 4096, Content::Data, 9, None),
        ];
        let located = |offset: u64| LOCATED | offset;
        assert_eq!(
            column(&table, &graph, &extents, "base:allocation"),
            [(16_384, 0), (4096, 3), (12_288, 0)]
        );
        // The opaque half of the file, the extent of generation 0 and the data without a place are never direct.
        assert_eq!(
            column(&table, &graph, &extents, "x-volmap:generation"),
            [(8192, 7), (8192, 0), (4096, 7), (4096, 9), (8192, 0)]
        );
        assert_eq!(
            column(&table, &graph, &extents, "x-volmap:disk:id:lun0"),
            [(8192, located(0x10_1000)), (24_576, 0)]
        );
        assert_eq!(
            column(&table, &graph, &extents, "x-volmap:disk:id:lun1"),
            [(20_480, 0), (4096, located(512)), (8192, 0)]
        );
        // The chain is shown as far down as it is understood, also where it is never direct.
        assert_eq!(
            column(&table, &graph, &extents, "x-volmap:store:2:id:dark"),
            [(8192, 0), (8192, located(0)), (16_384, 0)]
        );
    }

    #[test]
    fn neighbours_join_only_where_the_address_continues() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "d", 1 << 20, Below::Disk));
        let table = ContextTable::new(&graph, None);
        let at = |offset| Some(Place { store: disk, offset });
        let extents = [
            extent(0, 512, Content::Data, 1, at(4096)),
            extent(512, 512, Content::Data, 1, at(4608)),
            extent(1024, 512, Content::Data, 1, at(4608)),
            extent(1536, 512, Content::Data, 1, at(4608)),
        ];
        assert_eq!(
            column(&table, &graph, &extents, "x-volmap:disk:id:d"),
            [
                (1024, LOCATED | 4096),
                (512, LOCATED | 4608),
                (512, LOCATED | 4608)
            ]
        );
        assert_eq!(
            column(&table, &graph, &extents, "x-volmap:generation"),
            [(2048, 1)]
        );
    }

    #[test]
    fn descriptors_end_at_the_limit_and_contexts_stay_even() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "d", 1 << 20, Below::Disk));
        let table = ContextTable::new(&graph, None);
        // Every extent is a descriptor of its own on the disk; all are one in base:allocation.
        let extents: Vec<StatusExtent> = (0..5)
            .map(|i| {
                let place = Some(Place {
                    store: disk,
                    offset: 65_536 - i * 8192,
                });
                extent(i * 4096, 4096, Content::Data, 1, place)
            })
            .collect();
        let both = [
            index(&table, "base:allocation"),
            index(&table, "x-volmap:disk:id:d"),
        ];
        for (limit, count) in [(2, 2), (4, 4), (5, 5), (6, 5)] {
            let answer = table.answer(&graph, &extents, &both, limit);
            assert_eq!(answer[1].descriptors.len(), count);
            let covered =
                [&answer[0], &answer[1]].map(|c| c.descriptors.iter().map(|d| d.length).sum::<u64>());
            assert_eq!(covered, [count as u64 * 4096; 2]);
        }
        let one = table.answer(&graph, &extents, &both, 1);
        assert!(one.iter().all(|c| c.descriptors.len() == 1));
        assert_eq!(one[1].descriptors[0].length, 4096);
    }

    #[test]
    fn an_answer_tells_of_no_more_changes_than_are_looked_at() {
        let looked_at = CHANGED_PIECES_LOOKED_AT * 4096;
        let size = 3 * looked_at;
        let changed = ChangedMap::all_but(size, ByteRange::new(0, size));
        assert_eq!(changed.granule(), 4096);
        let uuid = Uuid::from_u128(1);
        let parent = Parent { uuid, changed };
        let graph = StoreGraph::new();
        let table = ContextTable::new(&graph, Some(Uuid::nil())).since(vec![parent]);
        let both = [
            index(&table, "base:allocation"),
            index(&table, &format!("x-volmap:changed:{uuid}")),
        ];
        let mut at = 0;
        let mut answers = 0;
        while at < size {
            let extents = [extent(at, size - at, Content::Data, 0, None)];
            for limit in [1, 100] {
                let answer = table.answer(&graph, &extents, &both, limit);
                let told = &answer[1].descriptors;
                assert_eq!((told.len(), told[0].length, told[0].status), (1, looked_at, 0));
                // Asked for one descriptor each, what is known anyway may be longer.
                assert!(limit == 1 || answer[0].descriptors == *told);
            }
            at += looked_at;
            answers += 1;
        }
        assert_eq!(answers, 3);
    }

    proptest! {
        /// Whatever is selected, each context says the same of each byte as when it is asked for with all others.
        #[test]
        fn contexts_are_consistent(
            pieces in proptest::collection::vec((1_u64..5000, 0_u8..4, 0_u64..3, 0_u64..16_000), 1..30),
            limit in 2_usize..40,
        ) {
            let (graph, file, area) = two_disks();
            let table = ContextTable::new(&graph, Some(Uuid::nil()));
            let mut start = 0;
            let extents: Vec<StatusExtent> = pieces.iter().map(|&(len, kind, generation, offset)| {
                let content = match kind { 0 => Content::Hole, 1 => Content::Zero, _ => Content::Data };
                let store = if kind == 2 { file } else { area };
                let place = (content == Content::Data).then_some(Place { store, offset });
                let made = extent(start, len, content, generation, place);
                start += len;
                made
            }).collect();
            let all: Vec<ContextIndex> = (0..table.contexts().len()).map(ContextIndex).collect();
            let answer = table.answer(&graph, &extents, &all, limit);
            let covered: Vec<u64> =
                answer.iter().map(|c| c.descriptors.iter().map(|d| d.length).sum()).collect();
            prop_assert!(covered.iter().all(|c| *c == covered[0] && *c > 0 && *c <= start));
            for (context, index) in answer.iter().zip(&all) {
                prop_assert!(context.descriptors.len() <= limit);
                let alone = table.answer(&graph, &extents, &[*index], usize::MAX);
                let mut whole = alone[0].descriptors.clone();
                cut(&mut whole, covered[0]);
                prop_assert_eq!(&context.descriptors, &whole);
            }
            // A byte lies on at most one disk, and only where its generation allows it.
            let at = |context: &ContextStatus, byte: u64| {
                let mut from = 0;
                context.descriptors.iter().find_map(|d| {
                    let here = (from..from + d.length).contains(&byte).then_some(d.status);
                    from += d.length;
                    here
                })
            };
            let disks: Vec<&ContextStatus> = answer.iter()
                .filter(|c| matches!(table.meanings[c.context.0], Meaning::Disk(_))).collect();
            let generation = &answer[index(&table, "x-volmap:generation").0];
            for byte in (0..covered[0]).step_by(97) {
                let on = disks.iter().filter(|d| at(d, byte) != Some(0)).count();
                prop_assert!(on <= 1);
                prop_assert!(on == 0 || at(generation, byte) != Some(0));
            }
        }
    }
}
