//! A full log of the writes to a volume: what it holds at any instant, told without asking anybody.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

/// The kinds of requests that change a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// WRITE of a stamp, again and again.
    Write([u8; 8]),
    /// TRIM: an origin promises zeroes.
    Trim,
    /// WRITE_ZEROES.
    WriteZeroes {
        /// NO_HOLE.
        no_hole: bool,
    },
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// What is done to them.
    pub kind: Kind,
}

impl Change {
    /// The bytes of a WRITE.
    pub fn bytes(&self, stamp: [u8; 8]) -> Bytes {
        let len = usize::try_from(self.len).unwrap();
        let mut bytes = stamp.repeat(len.div_ceil(stamp.len()));
        bytes.truncate(len);
        bytes.into()
    }

    /// Does it to the content of a volume.
    pub fn apply(&self, content: &mut [u8]) {
        let start = usize::try_from(self.offset).unwrap();
        let target = &mut content[start..][..usize::try_from(self.len).unwrap()];
        match self.kind {
            Kind::Write(stamp) => target.copy_from_slice(&self.bytes(stamp)),
            Kind::Trim | Kind::WriteZeroes { .. } => target.fill(0),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    change: Change,
    replied: bool,
}

/// What one writer asked for, one request after the other: what it changes, nobody else does.
pub struct Log {
    entries: Mutex<Vec<Entry>>,
}

/// How much of a log there was at an instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Requests that were replied to.
    pub replied: usize,
    /// Requests that were sent.
    pub sent: usize,
}

impl Log {
    /// An empty one.
    #[allow(clippy::new_without_default, reason = "a log begins")]
    pub fn new() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }

    /// A request is about to be sent.
    pub fn sent(&self, change: Change) {
        let replied = false;
        self.entries.lock().unwrap().push(Entry { change, replied });
    }

    /// The last request was replied to.
    pub fn replied(&self) {
        self.entries.lock().unwrap().last_mut().unwrap().replied = true;
    }

    /// How much there is by now.
    pub fn extent(&self) -> Extent {
        let entries = self.entries.lock().unwrap();
        Extent {
            replied: entries.iter().filter(|entry| entry.replied).count(),
            sent: entries.len(),
        }
    }

    /// The first `count` requests.
    pub fn first(&self, count: usize) -> Vec<Change> {
        let entries = self.entries.lock().unwrap();
        entries[..count].iter().map(|entry| entry.change).collect()
    }

    /// Does all of it to `content` and begins anew; everything must have been replied to.
    fn settle(&self, content: &mut [u8]) {
        for entry in self.entries.lock().unwrap().drain(..) {
            assert!(entry.replied, "a request is in flight: {:?}", entry.change);
            entry.change.apply(content);
        }
    }
}

/// What a volume holds, by the logs of all its writers.
pub struct Oracle {
    settled: Mutex<Vec<u8>>,
    logs: Mutex<Vec<Arc<Log>>>,
}

impl Oracle {
    /// A volume that nobody has written to yet.
    pub fn new(content: Vec<u8>) -> Self {
        Self {
            settled: Mutex::new(content),
            logs: Mutex::default(),
        }
    }

    /// Another writer.
    pub fn add(&self, log: Arc<Log>) {
        self.logs.lock().unwrap().push(log);
    }

    /// All writers. A log goes back to the last call of [`Oracle::content`].
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.logs.lock().unwrap().clone()
    }

    /// The volume now; no request is in flight.
    pub fn content(&self) -> Vec<u8> {
        let mut settled = self.settled.lock().unwrap();
        for log in self.logs() {
            log.settle(&mut settled);
        }
        settled.clone()
    }

    /// The volume at the last call of [`Oracle::content`].
    pub fn settled(&self) -> Vec<u8> {
        self.settled.lock().unwrap().clone()
    }
}
