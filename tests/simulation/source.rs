//! The proxy's end of the wire: what `NbdSource` is in the program, over the simulated wire.

use std::sync::Mutex;

use bytes::Bytes;
use proxy_client::error::{Error, ErrorKind, Result};
use proxy_client::pipeline::FrozenSource;
use proxy_client::plan::mapped::{MappedExtent, merge_chunks};
use uuid::Uuid;
use volmap::identity::Identity;
use volmap::range::ByteRange;

use crate::wire::{Answer, Request, Wire};

/// How often a request is made again because its connection dropped.
const ATTEMPTS: usize = 6;

pub(crate) struct Source {
    wire: Wire,
    luns: Vec<Identity>,
    frozen: Uuid,
    size: u64,
    connection: Mutex<usize>,
}

impl Source {
    /// `None`: nothing is published.
    pub(crate) fn open(wire: Wire, luns: Vec<Identity>) -> Option<Self> {
        let opened = wire.connect(&luns)?;
        Some(Self {
            wire,
            luns,
            frozen: opened.frozen,
            size: opened.size,
            connection: Mutex::new(opened.connection),
        })
    }

    /// Asks, again on another connection where the first was lost: to the same frozen image only (law P5).
    async fn ask(&self, request: Request) -> Result<Answer> {
        let gone = |message| Err(Error::new(ErrorKind::FrozenImageGone, message));
        for _ in 0..ATTEMPTS {
            let connection = *self.connection.lock().unwrap();
            match self.wire.send(connection, request).await {
                Answer::Lost => {
                    let mut current = self.connection.lock().unwrap();
                    if *current == connection {
                        match self.wire.connect(&self.luns) {
                            None => return gone("the host does not have it any more"),
                            Some(opened) if opened.frozen != self.frozen => {
                                return gone("it is another image");
                            }
                            Some(opened) => *current = opened.connection,
                        }
                    }
                }
                Answer::Gone => return gone("the host says so"),
                Answer::Failed => return Err(Error::new(ErrorKind::HostRefused, "the host failed")),
                answer => return Ok(answer),
            }
        }
        Err(Error::new(ErrorKind::HostLost, "every connection dropped"))
    }

    async fn status(&self, range: ByteRange, request: Request) -> Result<Vec<MappedExtent>> {
        match self.ask(request).await? {
            Answer::Status(chunks) => merge_chunks(range, &chunks)
                .map_err(|error| Error::new(ErrorKind::HostMisbehaved, "contradiction").caused_by(error)),
            other => panic!("{request:?} was answered with {other:?}"),
        }
    }
}

impl FrozenSource for Source {
    fn size(&self) -> u64 {
        self.size
    }

    async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        self.status(range, Request::Map(range)).await
    }

    async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        self.status(range, Request::Generations(range)).await
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        match self.ask(Request::Read(range)).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => panic!("a read was answered with {other:?}"),
        }
    }
}
