//! Pieces of a store that are dealt out over several places below.

use super::{Place, StoreId};
use crate::range::ByteRange;

/// A piece of a store whose bytes are dealt out in chunks to columns, in turn, as RAID 0 does. With a single column it is linear.
///
/// A volume of terabytes has tens of millions of chunks: where each lies is computed when it is asked for, never written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stripes {
    range: ByteRange,
    /// Bytes that lie in one piece; all of the range where there is one column.
    chunk: u64,
    /// Where the first chunk of each column lies; the next one of it follows right behind.
    columns: Vec<Place>,
}

impl Stripes {
    /// A range dealt out in chunks of `chunk` bytes. `None` where the chunks do not make up whole rows, or a column would end
    /// past 2^64.
    pub fn new(range: ByteRange, chunk: u64, columns: Vec<Place>) -> Option<Self> {
        let row = chunk.checked_mul(u64::try_from(columns.len()).ok()?)?;
        if row == 0 || !range.len().is_multiple_of(row) {
            return None;
        }
        let stripes = Self {
            range,
            chunk: if columns.len() == 1 { range.len() } else { chunk },
            columns,
        };
        let column_len = stripes.column_len();
        let fits = |column: &Place| column.offset.checked_add(column_len).is_some();
        stripes.columns.iter().all(fits).then_some(stripes)
    }

    /// A range that lies in one piece; `None` where that would end past 2^64.
    pub fn linear(range: ByteRange, below: Place) -> Option<Self> {
        Self::new(range, range.len(), vec![below])
    }

    /// Bytes of the upper store.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// What is taken up below: a store, and a range of it, for each column.
    pub fn columns(&self) -> impl Iterator<Item = (StoreId, ByteRange)> {
        let len = self.column_len();
        self.columns
            .iter()
            .filter_map(move |column| Some((column.store, ByteRange::new(column.offset, len)?)))
    }

    /// Where the byte at `offset` of the upper store lies, and how many bytes from there on lie in one piece.
    ///
    /// # Panics
    /// The offset is not in the range: a mistake of the caller.
    pub fn locate(&self, offset: u64) -> (Place, u64) {
        assert!(self.range.contains(offset), "an offset of the piece");
        let at = offset - self.range.start();
        let (chunk, within) = (at / self.chunk, at % self.chunk);
        let (row, column) = (chunk / self.count(), chunk % self.count());
        let column = self.columns[usize::try_from(column).expect("fewer than there are columns")];
        let place = Place {
            store: column.store,
            offset: column.offset + row * self.chunk + within,
        };
        (place, self.chunk - within)
    }

    fn count(&self) -> u64 {
        self.columns.len() as u64
    }

    fn column_len(&self) -> u64 {
        self.range.len() / self.count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Below, Store, StoreGraph, StoreKind};
    use super::*;
    use crate::identity::Identity;

    fn disks(count: usize) -> (StoreGraph, Vec<StoreId>) {
        let mut graph = StoreGraph::new();
        let disk = |number: usize| Store {
            kind: StoreKind::Disk,
            identity: Identity::new("id", &number.to_string()).unwrap(),
            label: String::new(),
            size: u64::MAX,
            block_size: None,
            below: Below::Disk,
        };
        let ids = (0..count).map(|number| graph.add(disk(number))).collect();
        (graph, ids)
    }

    #[test]
    fn rows_have_to_be_whole_and_columns_have_to_end() {
        let (_, ids) = disks(2);
        let columns = |offset| {
            let place = |&store| Place { store, offset };
            ids.iter().map(place).collect::<Vec<_>>()
        };
        let range = |len| ByteRange::new(4096, len).unwrap();
        assert!(Stripes::new(range(8192), 2048, columns(0)).is_some());
        assert!(Stripes::new(range(8192 + 2048), 2048, columns(0)).is_none());
        assert!(Stripes::new(range(8192), 0, columns(0)).is_none());
        assert!(Stripes::new(range(8192), 4096, Vec::new()).is_none());
        assert!(Stripes::new(range(8192), u64::MAX, columns(0)).is_none());
        assert!(Stripes::new(range(8192), 4096, columns(u64::MAX - 4096)).is_some());
        assert!(Stripes::new(range(8192), 4096, columns(u64::MAX - 4095)).is_none());
    }

    #[test]
    fn a_stripe_of_petabytes_is_a_few_bytes() {
        let (mut graph, ids) = disks(2);
        let columns = ids.iter().map(|&store| Place { store, offset: 0 }).collect();
        let whole = ByteRange::new(0, 1 << 52).unwrap();
        let stripes = Stripes::new(whole, 4096, columns).unwrap();
        let top = graph.add(Store {
            kind: StoreKind::DeviceMapper,
            identity: Identity::new("dm", "striped").unwrap(),
            label: String::new(),
            size: 1 << 52,
            block_size: None,
            below: Below::Striped(vec![stripes]),
        });
        let place = Place {
            store: top,
            offset: (1 << 52) - 1,
        };
        let resolved = graph.resolve(place, 1);
        let last = Place {
            store: ids[1],
            offset: (1 << 51) - 1,
        };
        assert_eq!((resolved.len, resolved.disk()), (1, Some(last)));
        assert_eq!(
            super::super::Reach::of(&graph).at(
                Place {
                    store: top,
                    offset: 0
                },
                1 << 52
            ),
            (true, 1 << 52)
        );
    }

    proptest! {
        /// The model deals one sector after the other, as cards are dealt.
        #[test]
        fn sectors_are_dealt_out_in_turn(
            count in 1_usize..7,
            chunk in 1_u64..9,
            rows in 1_u64..9,
            start in 0_u64..1000,
            first in proptest::collection::vec(0_u64..1000, 6),
        ) {
            let (_, ids) = disks(count);
            let columns: Vec<Place> =
                ids.iter().zip(&first).map(|(&store, &offset)| Place { store, offset }).collect();
            let len = chunk * rows * count as u64;
            let stripes = Stripes::new(ByteRange::new(start, len).unwrap(), chunk, columns.clone()).unwrap();

            let mut next = columns;
            let mut model = Vec::new();
            while model.len() < usize::try_from(len).unwrap() {
                for column in &mut next {
                    for _ in 0..chunk {
                        model.push(*column);
                        column.offset += 1;
                    }
                }
            }
            for (offset, expected) in (start..).zip(&model) {
                let (place, run) = stripes.locate(offset);
                prop_assert_eq!(place, *expected);
                prop_assert!(run > 0 && offset + run <= start + len);
                let at = usize::try_from(offset - start).unwrap();
                for ahead in 0..usize::try_from(run).unwrap() {
                    let expected = Place { store: place.store, offset: place.offset + ahead as u64 };
                    prop_assert_eq!(model[at + ahead], expected);
                }
            }
            // What is taken up below is what was dealt, and nothing else.
            let mut taken: Vec<(StoreId, u64)> = stripes
                .columns()
                .flat_map(|(store, range)| (range.start()..range.end()).map(move |offset| (store, offset)))
                .collect();
            let mut dealt: Vec<(StoreId, u64)> = model.iter().map(|p| (p.store, p.offset)).collect();
            taken.sort_unstable();
            dealt.sort_unstable();
            prop_assert_eq!(taken, dealt);
        }
    }
}
