//! A LUN reader that lets an action in at a named point of a backup: races are forced, not hoped for.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use proxy_client::transport::direct::{DirectOpener, Geometry, LunOpener, LunReader};

/// Reads that are longer than this are of data; shorter ones are the samples and the nonce of the LUN proof, which
/// comes before them.
const LONGEST_PROOF_READ: usize = 32 << 10;

/// When the action comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The map was learnt, nothing was read by it yet.
    BeforeRead,
    /// Half of the bytes were read.
    DuringRead,
    /// All bytes were read, and their mapping was not confirmed yet.
    AfterRead,
}

impl Point {
    /// Every point.
    pub const ALL: [Self; 3] = [Self::BeforeRead, Self::DuringRead, Self::AfterRead];
}

type Action = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Set,
    /// The action has ended.
    Sprung,
    /// The action has panicked.
    Failed,
}

struct Trap {
    point: Point,
    /// Data reads before the one that springs it.
    wait: usize,
    reads: AtomicUsize,
    action: Mutex<Option<Action>>,
    state: Mutex<State>,
    sprung: Condvar,
}

impl Trap {
    fn spring(&self) {
        let action = self.action.lock().unwrap().take().unwrap();
        let ended = catch_unwind(AssertUnwindSafe(action));
        let state = if ended.is_ok() {
            State::Sprung
        } else {
            State::Failed
        };
        *self.state.lock().unwrap() = state;
        self.sprung.notify_all();
    }

    /// What is read behind the read that springs it is read after the action.
    fn await_action(&self) {
        let state = self.state.lock().unwrap();
        drop(
            self.sprung
                .wait_while(state, |state| *state == State::Set)
                .unwrap(),
        );
    }
}

/// Opens real LUNs, with a trap in them.
pub struct Ambush(Arc<Trap>);

impl Ambush {
    /// `action` comes at `point` of the read of data that `wait` others came before.
    pub fn new(point: Point, wait: usize, action: impl FnOnce() + Send + 'static) -> Self {
        Self(Arc::new(Trap {
            point,
            wait,
            reads: AtomicUsize::new(0),
            action: Mutex::new(Some(Box::new(action))),
            state: Mutex::new(State::Set),
            sprung: Condvar::new(),
        }))
    }

    /// Lets nothing in.
    pub fn never() -> Self {
        Self::new(Point::BeforeRead, usize::MAX, || ())
    }

    /// Whether the action has come, and has ended.
    pub fn has_sprung(&self) -> bool {
        *self.0.state.lock().unwrap() == State::Sprung
    }
}

impl LunOpener for Ambush {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>> {
        Ok(Box::new(TrappedLun {
            lun: DirectOpener.open(path)?,
            trap: Arc::clone(&self.0),
        }))
    }
}

struct TrappedLun {
    lun: Box<dyn LunReader>,
    trap: Arc<Trap>,
}

impl LunReader for TrappedLun {
    fn size(&self) -> u64 {
        self.lun.size()
    }

    fn block_size(&self) -> u64 {
        self.lun.block_size()
    }

    fn geometry(&self) -> Option<Geometry> {
        self.lun.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let trap = &self.trap;
        if buf.len() <= LONGEST_PROOF_READ {
            return self.lun.read_at(offset, buf);
        }
        let before_it = trap.reads.fetch_add(1, Ordering::SeqCst);
        if before_it != trap.wait {
            if before_it > trap.wait {
                trap.await_action();
            }
            return self.lun.read_at(offset, buf);
        }
        let block = usize::try_from(self.lun.block_size()).unwrap();
        let until = match trap.point {
            Point::BeforeRead => 0,
            Point::DuringRead => (buf.len() / 2).next_multiple_of(block),
            Point::AfterRead => buf.len(),
        };
        let (before, after) = buf.split_at_mut(until);
        let read = self.lun.read_at(offset, before);
        trap.spring();
        let mut filled = read?;
        if filled == until {
            filled += self.lun.read_at(offset + until as u64, after)?;
        }
        Ok(filled)
    }
}
