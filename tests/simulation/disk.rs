//! The shared disks: what both machines see.

use std::sync::{Mutex, MutexGuard};

use volmap::identity::Identity;
use volmap::store::{Below, Place, Segment, Store, StoreGraph, StoreId, StoreKind};

use crate::dice::Dice;

/// What one reader or writer touches at one instant at most.
pub(crate) const SECTOR: u64 = 512;

pub(crate) struct Disk {
    pub(crate) identity: Identity,
    bytes: Mutex<Vec<u8>>,
}

impl Disk {
    pub(crate) fn new(name: &str, size: u64) -> Self {
        Self {
            identity: Identity::new("id", name).unwrap(),
            // What nobody has written is not zero.
            bytes: Mutex::new(vec![0xDB; size as usize]),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap()
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        let offset = offset as usize;
        buf.copy_from_slice(&self.bytes()[offset..offset + buf.len()]);
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let offset = offset as usize;
        self.bytes()[offset..offset + data.len()].copy_from_slice(data);
    }

    pub(crate) fn store(&self, graph: &mut StoreGraph) -> StoreId {
        graph.add(Store {
            kind: StoreKind::Disk,
            label: self.identity.to_string(),
            identity: self.identity.clone(),
            size: self.size(),
            block_size: None,
            below: Below::Disk,
        })
    }
}

/// Where the pieces of something lie on a disk: pieces of one size, in any order.
#[derive(Clone)]
pub(crate) struct Layout {
    pub(crate) piece: u64,
    pub(crate) places: Vec<u64>,
}

impl Layout {
    /// `bytes` in pieces, each in one of the free pieces of a disk, which are neighbours as often as not.
    pub(crate) fn scattered(dice: &Dice, piece: u64, bytes: u64, free: &mut Vec<u64>) -> Self {
        let count = bytes.div_ceil(piece) as usize;
        let mut places = Vec::new();
        let mut last = dice.roll(free.len() as u64) as usize;
        for _ in 0..count {
            if dice.one_in(3) {
                last = dice.roll(free.len() as u64) as usize;
            }
            last = last.min(free.len() - 1);
            places.push(free.remove(last));
        }
        Self { piece, places }
    }

    /// The place on the disk of an offset.
    pub(crate) fn place(&self, offset: u64) -> u64 {
        self.places[(offset / self.piece) as usize] + offset % self.piece
    }

    /// A store that lies so on `disk`.
    pub(crate) fn store(&self, graph: &mut StoreGraph, disk: StoreId, name: &str, size: u64) -> StoreId {
        let segments = (0..).zip(&self.places).filter_map(|(index, &place)| {
            let start = index * self.piece;
            Some(Segment {
                range: volmap::range::ByteRange::from_bounds(start, size.min(start + self.piece))?,
                below: Place {
                    store: disk,
                    offset: place,
                },
            })
        });
        let mut segments: Vec<Segment> = segments.collect();
        volmap::store::normalise_segments(&mut segments);
        graph.add(Store {
            kind: StoreKind::File,
            identity: Identity::new("id", name).unwrap(),
            label: name.to_owned(),
            size,
            block_size: None,
            below: Below::Segments(segments),
        })
    }
}
