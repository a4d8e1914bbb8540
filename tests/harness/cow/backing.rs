//! Storage of an origin that calls a hook around every operation.

use std::io;
use std::sync::{Arc, RwLock};

use volmap::storage::Backing;

/// Which storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The origin.
    Origin,
    /// Its copy area.
    CopyArea,
}

/// What is done to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Bytes are read: the old data of a writer, or for a reader.
    Read,
    /// Bytes or zeroes are written.
    Write,
    /// Old data is written so that it is on the device at the return.
    WriteThrough,
    /// Blocks are given back.
    Punch,
    /// What was written goes to the device.
    Sync,
}

/// A moment at which the hook is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Which storage.
    pub side: Side,
    /// What is done to it.
    pub operation: Operation,
    /// Whether it has completed.
    pub done: bool,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

type Hook = Arc<dyn Fn(Moment) + Send + Sync>;

/// The hook of both sides, to be changed at any time.
#[derive(Clone, Default)]
pub struct Hooks(Arc<RwLock<Option<Hook>>>);

impl Hooks {
    /// Calls `hook` from now on.
    pub fn set(&self, hook: impl Fn(Moment) + Send + Sync + 'static) {
        *self.0.write().unwrap() = Some(Arc::new(hook));
    }

    /// Calls nothing any more.
    pub fn clear(&self) {
        *self.0.write().unwrap() = None;
    }

    fn call(&self, moment: Moment) {
        let hook = self.0.read().unwrap().clone();
        if let Some(hook) = hook {
            hook(moment);
        }
    }
}

/// A backing with the hook around it.
pub struct Hooked {
    inner: Box<dyn Backing>,
    side: Side,
    hooks: Hooks,
}

impl Hooked {
    /// Wraps `inner`.
    pub fn new(inner: Box<dyn Backing>, side: Side, hooks: Hooks) -> Self {
        Self { inner, side, hooks }
    }

    fn around(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        work: impl FnOnce(&dyn Backing) -> io::Result<()>,
    ) -> io::Result<()> {
        let moment = |done| Moment {
            side: self.side,
            operation,
            done,
            offset,
            len,
        };
        self.hooks.call(moment(false));
        let result = work(&*self.inner);
        self.hooks.call(moment(true));
        result
    }
}

impl Backing for Hooked {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len() as u64;
        self.around(Operation::Read, offset, len, |inner| inner.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u64;
        self.around(Operation::Write, offset, len, |inner| {
            inner.write_at(offset, data)
        })
    }

    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.around(Operation::Punch, offset, len, |inner| inner.punch_at(offset, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.around(Operation::Sync, 0, 0, |inner| inner.sync_data())
    }

    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u64;
        self.around(Operation::WriteThrough, offset, len, |inner| {
            inner.write_through_at(offset, data)
        })
    }

    fn write_zeroes_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.around(Operation::Write, offset, len, |inner| {
            inner.write_zeroes_at(offset, len)
        })
    }
}
