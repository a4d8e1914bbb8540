//! LUNs of a backup that let somebody in around every read of the job.

use std::io;
use std::path::Path;
use std::sync::Arc;

use proxy_client::transport::direct::{DirectOpener, LunOpener, LunReader};

/// Reads up to this length (a sample, rounded outward) may be of the proof that the LUN is the right one; longer ones bring
/// bytes for the image.
const SAMPLE_MAX: usize = (16 << 10) + 2 * 4096;

/// A moment of a read that brings bytes for the image: every one is later than the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadMoment {
    /// It has not begun.
    Before,
    /// Its first half has been read.
    Half,
    /// It has completed, and nothing of it has been confirmed.
    After,
}

/// The three.
pub const READ_MOMENTS: [ReadMoment; 3] = [ReadMoment::Before, ReadMoment::Half, ReadMoment::After];

type Hook = Arc<dyn Fn(ReadMoment) + Send + Sync>;

/// Opens real LUNs, and calls a hook around every read of data.
pub struct HookedLuns(Hook);

impl HookedLuns {
    /// Calls `hook` around every read of data, on a thread that may block.
    pub fn new(hook: impl Fn(ReadMoment) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// Does `act` once, when the first read comes to `moment`. Other reads that come there meanwhile wait for its end.
    pub fn once(moment: ReadMoment, act: impl Fn() + Send + Sync + 'static) -> Self {
        let once = std::sync::Once::new();
        Self::new(move |now| {
            if now == moment {
                once.call_once(&act);
            }
        })
    }
}

impl LunOpener for HookedLuns {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>> {
        Ok(Box::new(HookedLun {
            inner: DirectOpener.open(path)?,
            hook: Arc::clone(&self.0),
        }))
    }
}

struct HookedLun {
    inner: Box<dyn LunReader>,
    hook: Hook,
}

impl LunReader for HookedLun {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn block_size(&self) -> u64 {
        self.inner.block_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if buf.len() <= SAMPLE_MAX {
            return self.inner.read_at(offset, buf);
        }
        (self.hook)(ReadMoment::Before);
        let block = usize::try_from(self.block_size()).unwrap();
        let (first, second) = buf.split_at_mut((buf.len() / 2).next_multiple_of(block));
        let mut read = self.inner.read_at(offset, first)?;
        (self.hook)(ReadMoment::Half);
        if read == first.len() {
            read += self.inner.read_at(offset + first.len() as u64, second)?;
        }
        (self.hook)(ReadMoment::After);
        Ok(read)
    }
}
