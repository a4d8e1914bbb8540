//! A file on a disk, seen through the host's page cache: the origin and the copy area of copy-before-write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use volmap::map::{Content, ContentMap, Extent};
use volmap::range::ByteRange;
use volmap::storage::Backing;

use crate::disk::{Disk, Layout};
use crate::world::World;

pub(crate) const PAGE: u64 = 4096;

type Page = Box<[u8]>;

/// What a medium does not do, though it says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Flaw {
    #[default]
    None,
    /// What is written through stays in the cache.
    KeepsWhatIsWrittenThrough,
    /// Nothing is synced.
    SyncsNothing,
}

#[derive(Clone)]
pub(crate) struct Medium(Arc<Inner>);

struct Inner {
    world: Weak<World>,
    disk: Arc<Disk>,
    layout: Layout,
    size: u64,
    flaw: Flaw,
    /// Dirty pages.
    cache: Mutex<BTreeMap<u64, Page>>,
    /// Pages that were never written back: they read as zeroes, whatever is on the disk, and so does the map tell of them even where something
    /// else is in the cache.
    unwritten: Mutex<BTreeSet<u64>>,
    /// Set when the next sync ends: from then on nobody writes.
    gate: Mutex<Option<Arc<AtomicBool>>>,
}

impl Medium {
    pub(crate) fn new(world: Weak<World>, disk: Arc<Disk>, layout: Layout, size: u64, flaw: Flaw) -> Self {
        Self(Arc::new(Inner {
            world,
            disk,
            layout,
            size,
            flaw,
            cache: Mutex::default(),
            unwritten: Mutex::new((0..size.div_ceil(PAGE)).collect()),
            gate: Mutex::default(),
        }))
    }

    /// Closes `gate` when the next sync ends.
    pub(crate) fn at_the_next_sync(&self, gate: &Arc<AtomicBool>) {
        *self.0.gate.lock().unwrap() = Some(Arc::clone(gate));
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.0.disk
    }

    /// Lets others act.
    fn turn(&self) {
        if let Some(world) = self.0.world.upgrade() {
            world.turn();
        }
    }

    /// Lets others act for longer.
    fn linger(&self) {
        if let Some(world) = self.0.world.upgrade() {
            world.linger();
        }
    }

    pub(crate) fn content(&self) -> ContentMap {
        let unwritten = self.0.unwritten.lock().unwrap();
        let pages = (0..self.0.size.div_ceil(PAGE)).map(|page| Extent {
            range: ByteRange::new(page * PAGE, PAGE).unwrap(),
            content: if unwritten.contains(&page) {
                Content::Zero
            } else {
                Content::Data
            },
        });
        ContentMap::from_extents(self.0.size, pages)
    }

    /// The kernel writes a dirty page back, if there is one.
    pub(crate) fn write_back_one(&self, which: u64) {
        let page = {
            let cache = self.0.cache.lock().unwrap();
            cache
                .keys()
                .nth((which % (cache.len() as u64).max(1)) as usize)
                .copied()
        };
        if let Some(page) = page {
            self.write_back(page);
        }
    }

    fn write_back(&self, page: u64) {
        let mut cache = self.0.cache.lock().unwrap();
        if let Some(bytes) = cache.remove(&page) {
            self.0.unwritten.lock().unwrap().remove(&page);
            self.0.disk.write(self.0.layout.place(page * PAGE), &bytes);
        }
    }

    /// The bytes now, for whoever needs no time for it.
    pub(crate) fn peek(&self, offset: u64, buf: &mut [u8]) {
        let cache = self.0.cache.lock().unwrap();
        let unwritten = self.0.unwritten.lock().unwrap();
        each_page(offset, buf.len(), |page, within, part| {
            if let Some(bytes) = cache.get(&page) {
                buf[part].copy_from_slice(&bytes[within]);
            } else if unwritten.contains(&page) {
                buf[part].fill(0);
            } else {
                let place = self.0.layout.place(page * PAGE) + within.start as u64;
                self.0.disk.read(place, &mut buf[part]);
            }
        });
    }

    /// Puts bytes into the page cache.
    pub(crate) fn poke(&self, offset: u64, data: &[u8]) {
        each_page(offset, data.len(), |page, within, part| {
            let mut bytes = vec![0; PAGE as usize];
            self.peek(page * PAGE, &mut bytes);
            bytes[within].copy_from_slice(&data[part]);
            self.0.cache.lock().unwrap().insert(page, bytes.into());
        });
    }

    /// Does something in two halves, with others let in before, between and after.
    fn halves(&self, len: usize, mut half: impl FnMut(Range<usize>)) {
        self.turn();
        let cut = (len / 2).next_multiple_of(PAGE as usize).min(len);
        half(0..cut);
        if cut < len {
            self.turn();
            half(cut..len);
        }
        self.turn();
    }
}

fn each_page(offset: u64, len: usize, mut each: impl FnMut(u64, Range<usize>, Range<usize>)) {
    let mut at = 0;
    while at < len {
        let position = offset + at as u64;
        let within = (position % PAGE) as usize;
        let piece = (PAGE as usize - within).min(len - at);
        each(position / PAGE, within..within + piece, at..at + piece);
        at += piece;
    }
}

impl Backing for Medium {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.halves(buf.len(), |half| {
            let at = offset + half.start as u64;
            self.peek(at, &mut buf[half]);
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.halves(data.len(), |half| {
            let at = offset + half.start as u64;
            self.poke(at, &data[half]);
        });
        Ok(())
    }

    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Nothing is copied yet: who can see the place by now is given the time to.
        self.linger();
        self.halves(data.len(), |half| {
            let at = offset + half.start as u64;
            self.poke(at, &data[half.clone()]);
            if self.0.flaw != Flaw::KeepsWhatIsWrittenThrough {
                each_page(at, half.len(), |page, _, _| self.write_back(page));
            }
        });
        Ok(())
    }

    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.turn();
        each_page(offset, len as usize, |page, within, _| {
            if within.len() == PAGE as usize {
                self.0.cache.lock().unwrap().remove(&page);
                self.0.unwritten.lock().unwrap().insert(page);
            } else {
                self.poke(page * PAGE + within.start as u64, &vec![0; within.len()]);
            }
        });
        self.turn();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.turn();
        let dirty: Vec<u64> = self.0.cache.lock().unwrap().keys().copied().collect();
        if self.0.flaw != Flaw::SyncsNothing {
            for page in dirty {
                self.write_back(page);
            }
        }
        self.turn();
        if let Some(gate) = self.0.gate.lock().unwrap().take() {
            // Between the syncs ahead and the gate nothing is called: whoever writes then, writes now.
            self.linger();
            gate.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
