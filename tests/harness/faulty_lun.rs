//! LUN readers with faults, by path: what a bad cable, a dying disk or another disk under the name does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use proxy_client::transport::direct::{DirectOpener, Geometry, LunOpener, LunReader};

/// Reads that are longer than this are of data, see [`crate::ambush`].
const LONGEST_PROOF_READ: usize = 32 << 10;

/// What happens to reads of data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// They fail.
    Errno(i32),
    /// They do not end.
    Hangs,
    /// They give another byte.
    Lies,
}

/// One path and its fault.
#[derive(Debug)]
struct Faulty {
    path: PathBuf,
    fault: Mutex<Fault>,
    changed: Condvar,
    /// Offset and length of every read, also of those of the proof.
    reads: Mutex<Vec<(u64, usize)>>,
}

/// Opens real LUNs, some of whose paths have faults.
#[derive(Clone, Debug)]
pub struct FaultyLuns(Vec<Arc<Faulty>>);

impl FaultyLuns {
    /// Faults by path; all others have none.
    pub fn new<'a>(faults: impl IntoIterator<Item = (&'a Path, Fault)>) -> Self {
        let faulty = |(path, fault): (&Path, Fault)| {
            Arc::new(Faulty {
                path: path.into(),
                fault: Mutex::new(fault),
                changed: Condvar::new(),
                reads: Mutex::default(),
            })
        };
        Self(faults.into_iter().map(faulty).collect())
    }

    fn of(&self, path: &Path) -> Option<&Arc<Faulty>> {
        self.0.iter().find(|faulty| faulty.path == path)
    }

    /// Offset and length of every read by a path.
    pub fn reads(&self, path: &Path) -> Vec<(u64, usize)> {
        self.of(path).unwrap().reads.lock().unwrap().clone()
    }
}

impl Drop for FaultyLuns {
    /// Lets go of what hangs, so that the test can end.
    fn drop(&mut self) {
        for faulty in &self.0 {
            *faulty.fault.lock().unwrap() = Fault::None;
            faulty.changed.notify_all();
        }
    }
}

impl LunOpener for FaultyLuns {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>> {
        let lun = DirectOpener.open(path)?;
        Ok(match self.of(path) {
            Some(faulty) => Box::new(Reader {
                lun,
                faulty: Arc::clone(faulty),
            }),
            None => lun,
        })
    }
}

struct Reader {
    lun: Box<dyn LunReader>,
    faulty: Arc<Faulty>,
}

impl LunReader for Reader {
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
        self.faulty.reads.lock().unwrap().push((offset, buf.len()));
        let fault = if buf.len() <= LONGEST_PROOF_READ {
            Fault::None
        } else {
            let fault = self.faulty.fault.lock().unwrap();
            *self
                .faulty
                .changed
                .wait_while(fault, |fault| *fault == Fault::Hangs)
                .unwrap()
        };
        if let Fault::Errno(code) = fault {
            return Err(io::Error::from_raw_os_error(code));
        }
        let read = self.lun.read_at(offset, buf)?;
        if fault == Fault::Lies {
            buf[0] ^= 1;
        }
        Ok(read)
    }
}
