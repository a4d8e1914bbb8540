//! A LUN reader that does something before its first read of data, and undoes it behind it: what was read is foreign, and all looks
//! as before when it is confirmed.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proxy_client::transport::direct::{DirectOpener, Geometry, LunOpener, LunReader};

/// Reads that are longer than this are of data, see [`tests::ambush`].
const LONGEST_PROOF_READ: usize = 32 << 10;

type Actions = (Box<dyn FnOnce() + Send>, Box<dyn FnOnce() + Send>);

/// See the module.
#[derive(Clone)]
pub(super) struct Around(Arc<Shared>);

struct Shared {
    /// Whoever reads meanwhile waits for this lock.
    actions: Mutex<Option<Actions>>,
    between: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Around {
    pub(super) fn new(before: impl FnOnce() + Send + 'static, after: impl FnOnce() + Send + 'static) -> Self {
        Self(Arc::new(Shared {
            actions: Mutex::new(Some((Box::new(before), Box::new(after)))),
            between: Mutex::new(None),
        }))
    }

    /// The place that was read between the actions, and what was read there.
    pub(super) fn read_between(&self) -> (u64, Vec<u8>) {
        self.0.between.lock().unwrap().clone().unwrap()
    }
}

impl LunOpener for Around {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>> {
        Ok(Box::new(Reader {
            lun: DirectOpener.open(path)?,
            around: self.clone(),
        }))
    }
}

struct Reader {
    lun: Box<dyn LunReader>,
    around: Around,
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
        if buf.len() <= LONGEST_PROOF_READ {
            return self.lun.read_at(offset, buf);
        }
        let mut actions = self.around.0.actions.lock().unwrap();
        let Some((before, after)) = actions.take() else {
            drop(actions);
            return self.lun.read_at(offset, buf);
        };
        before();
        let read = self.lun.read_at(offset, buf);
        after();
        *self.around.0.between.lock().unwrap() = Some((offset, buf.to_vec()));
        read
    }
}
