//! Sparse storage in memory that calls a hook around every operation.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::map::{Content, ContentMap, Extent};
use crate::range::ByteRange;
use crate::storage::Backing;

const PAGE: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Origin,
    CopyArea,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Read,
    Write,
    WriteThrough,
    Punch,
    Sync,
    /// Of the ground of an origin.
    Survey,
    /// Of the ground of an origin, ahead of a survey.
    Settle,
}

/// A moment at which the hook is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    pub(super) side: Side,
    pub(super) operation: Operation,
    /// Whether the operation has completed.
    pub(super) done: bool,
    pub(super) offset: u64,
}

type Hook = Arc<dyn Fn(Moment) -> io::Result<()> + Send + Sync>;

/// The hook of both backings of a bench.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Arc<Mutex<Option<Hook>>>);

impl Hooks {
    pub(super) fn set(&self, hook: impl Fn(Moment) -> io::Result<()> + Send + Sync + 'static) {
        *self.0.lock().unwrap() = Some(Arc::new(hook));
    }

    fn call(&self, moment: Moment) -> io::Result<()> {
        let hook = self.0.lock().unwrap().clone();
        hook.map_or(Ok(()), |hook| hook(moment))
    }
}

#[derive(Clone)]
pub(super) struct Memory {
    side: Side,
    size: u64,
    pages: Arc<RwLock<BTreeMap<u64, Box<[u8]>>>>,
    /// Something was written and not synced since.
    dirty: Arc<AtomicBool>,
    hooks: Hooks,
}

impl Memory {
    pub(super) fn new(side: Side, size: u64, hooks: Hooks) -> Self {
        Self {
            side,
            size,
            pages: Arc::default(),
            dirty: Arc::default(),
            hooks,
        }
    }

    /// Data where a page is, holes elsewhere.
    pub(super) fn content(&self) -> ContentMap {
        let pages = self.pages.read().unwrap();
        let extents = pages.keys().map(|page| Extent {
            range: ByteRange::new(page * PAGE, PAGE).unwrap(),
            content: Content::Data,
        });
        ContentMap::from_extents(self.size, extents)
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// The bytes, past every hook.
    pub(super) fn peek(&self, offset: u64, buf: &mut [u8]) {
        let pages = self.pages.read().unwrap();
        each_page(offset, buf.len(), |page, within, part| match pages.get(&page) {
            Some(bytes) => buf[part].copy_from_slice(&bytes[within]),
            None => buf[part].fill(0),
        });
    }

    /// Puts bytes there, past every hook.
    pub(super) fn poke(&self, offset: u64, data: &[u8]) {
        let mut pages = self.pages.write().unwrap();
        each_page(offset, data.len(), |page, within, part| {
            let bytes = pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
            bytes[within].copy_from_slice(&data[part]);
        });
    }

    pub(super) fn around(&self, operation: Operation, offset: u64, work: impl FnOnce()) -> io::Result<()> {
        let moment = |done| Moment {
            side: self.side,
            operation,
            done,
            offset,
        };
        self.hooks.call(moment(false))?;
        work();
        match operation {
            Operation::Write | Operation::Punch => self.dirty.store(true, Ordering::SeqCst),
            Operation::Sync => self.dirty.store(false, Ordering::SeqCst),
            Operation::Read | Operation::WriteThrough | Operation::Survey | Operation::Settle => {}
        }
        self.hooks.call(moment(true))
    }

    fn check(&self, offset: u64, len: u64) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.size),
            "{:?}",
            self.side
        );
    }
}

fn each_page(
    offset: u64,
    len: usize,
    mut each: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let mut at = 0;
    while at < len {
        let position = offset + at as u64;
        let within = (position % PAGE) as usize;
        let piece = (PAGE as usize - within).min(len - at);
        each(position / PAGE, within..within + piece, at..at + piece);
        at += piece;
    }
}

impl Backing for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64);
        self.around(Operation::Read, offset, || self.peek(offset, buf))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64);
        self.around(Operation::Write, offset, || self.poke(offset, data))
    }

    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64);
        self.around(Operation::WriteThrough, offset, || self.poke(offset, data))
    }

    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len);
        self.around(Operation::Punch, offset, || {
            let mut pages = self.pages.write().unwrap();
            each_page(offset, usize::try_from(len).unwrap(), |page, within, _| {
                if within.len() == PAGE as usize {
                    pages.remove(&page);
                } else if let Some(bytes) = pages.get_mut(&page) {
                    bytes[within].fill(0);
                }
            });
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.around(Operation::Sync, 0, || {})
    }
}
