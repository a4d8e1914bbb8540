//! LUNs as the proxy sees them: reads that take their time, and fail now and then.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use proxy_client::transport::direct::{Lun, LunReader, Memory, MemoryPool, ReadMeanwhile, ReadThreads};
use volmap::range::ByteRange;

use crate::dice::Dice;
use crate::disk::{Disk, SECTOR};

/// A read that was begun.
struct Reading {
    disk: Arc<Disk>,
    blocks: ByteRange,
    buffer: Option<Memory>,
    filled: usize,
    ended: Option<io::Result<()>>,
    waker: Option<Waker>,
}

/// All reads of LUNs that are under way.
#[derive(Clone, Default)]
pub(crate) struct Reads(Arc<Mutex<Vec<Arc<Mutex<Reading>>>>>);

impl Reads {
    pub(crate) fn lun(&self, disk: &Arc<Disk>) -> Lun {
        let reader = SlowLun {
            reads: self.clone(),
            disk: Arc::clone(disk),
        };
        Lun::new(disk.identity.clone(), "lun".into(), Box::new(reader))
    }

    /// A read gets on by some sectors; with all of them it is done.
    pub(crate) fn progress_one(&self, dice: &Dice) -> bool {
        let reading = {
            let mut reads = self.0.lock().unwrap();
            // Nobody waits for those any more.
            reads.retain(|reading| Arc::strong_count(reading) > 1);
            match dice.pick(&reads) {
                Some(reading) => Arc::clone(reading),
                None => return false,
            }
        };
        let waker = {
            let mut reading = reading.lock().unwrap();
            let Reading {
                disk,
                blocks,
                buffer,
                filled,
                ended,
                waker,
            } = &mut *reading;
            let Some(buffer) = buffer.as_mut().filter(|_| ended.is_none()) else {
                return false;
            };
            if dice.one_in(500) {
                *ended = Some(Err(io::Error::other("a simulated error")));
            } else {
                let whole = blocks.len() as usize;
                let left = (whole - *filled) as u64 / SECTOR;
                let sectors = if dice.one_in(2) { left } else { dice.roll(left) + 1 };
                let end = *filled + (sectors * SECTOR) as usize;
                disk.read(blocks.start() + *filled as u64, &mut buffer[*filled..end]);
                *filled = end;
                if end == whole {
                    *ended = Some(Ok(()));
                }
            }
            ended.as_ref().and_then(|_| waker.take())
        };
        if let Some(waker) = waker {
            self.0
                .lock()
                .unwrap()
                .retain(|other| !Arc::ptr_eq(other, &reading));
            waker.wake();
        }
        true
    }
}

struct SlowLun {
    reads: Reads,
    disk: Arc<Disk>,
}

impl LunReader for SlowLun {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn block_size(&self) -> u64 {
        SECTOR
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("reads are made meanwhile")
    }

    fn read_meanwhile(
        self: Arc<Self>,
        blocks: ByteRange,
        pool: &MemoryPool,
        _: &ReadThreads,
    ) -> ReadMeanwhile {
        let reading = Arc::new(Mutex::new(Reading {
            disk: Arc::clone(&self.disk),
            blocks,
            buffer: Some(pool.take(blocks.len() as usize)),
            filled: 0,
            ended: None,
            waker: None,
        }));
        self.reads.0.lock().unwrap().push(Arc::clone(&reading));
        Box::pin(Ended(reading))
    }
}

struct Ended(Arc<Mutex<Reading>>);

impl Future for Ended {
    type Output = io::Result<(Memory, usize)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut reading = self.0.lock().unwrap();
        match reading.ended.take() {
            Some(Ok(())) => {
                let buffer = reading.buffer.take().unwrap();
                let filled = reading.blocks.len() as usize;
                Poll::Ready(Ok((buffer, filled)))
            }
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => {
                reading.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
