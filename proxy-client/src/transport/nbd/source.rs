//! The frozen image behind a URI, through as many connections as it takes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nbd_export::uri::NbdUri;
use tokio::sync::RwLock;
use tokio::time::sleep;
use uuid::Uuid;
use volmap::identity::Identity;
use volmap::map::Content;
use volmap::range::ByteRange;

use super::link::{Link, LinkError};
use super::published::Published;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::FrozenSource;
use crate::plan::mapped::MappedExtent;

/// Waits before each attempt to take a lost connection up again: a restarted host is back within seconds, and one that is
/// gone should not hold the job for long.
const RECONNECT_WAITS: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// How often one request is made again because its connection was lost: a server that drops every connection at the
/// same request would otherwise hold the job for ever.
const ATTEMPTS: usize = 4;

/// How often contexts are listed again because a location is on a disk that has none yet (law P4).
const RELISTINGS: u32 = 8;

/// A frozen image that a host exports.
pub struct NbdSource {
    uri: NbdUri,
    luns: Vec<Identity>,
    frozen: Option<Uuid>,
    size: u64,
    link: RwLock<Arc<Link>>,
    relistings: AtomicU32,
    /// Why there will be no other connection: the first request that finds out waits for a host, the others do not.
    given_up: OnceLock<(ErrorKind, &'static str)>,
}

impl NbdSource {
    /// Connects. `luns` are the disks that the job can read; places refer to them by position.
    ///
    /// # Errors
    /// The host cannot be reached, or has no such export.
    pub async fn open(uri: NbdUri, luns: Vec<Identity>) -> Result<Self> {
        let link = Link::open(&uri, &luns)
            .await
            .map_err(|error| Error::from(error).of_volume(uri.export.as_str()))?;
        Ok(Self {
            size: link.connection.session().export.size,
            frozen: link.published.frozen,
            uri,
            luns,
            link: RwLock::new(Arc::new(link)),
            relistings: AtomicU32::new(0),
            given_up: OnceLock::new(),
        })
    }

    /// The frozen image that every byte comes from; `None` for a server that publishes none.
    pub fn frozen(&self) -> Option<Uuid> {
        self.frozen
    }

    /// What the export says of itself.
    pub async fn published(&self) -> Published {
        self.link.read().await.published.clone()
    }

    /// The export's description, for people and for the image.
    pub async fn description(&self) -> String {
        self.link
            .read()
            .await
            .connection
            .session()
            .export
            .description
            .clone()
    }

    /// Makes a request, again on another connection where the first was lost.
    async fn ask<T, F>(&self, request: impl Fn(Arc<Link>) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, LinkError>>,
    {
        let mut attempt = 1;
        loop {
            let link = Arc::clone(&*self.link.read().await);
            match request(Arc::clone(&link)).await {
                Ok(answer) => return Ok(answer),
                Err(LinkError::Nbd(error)) if error.is_connection_lost() && attempt < ATTEMPTS => {
                    tracing::warn!(%error, "the connection to the host is lost");
                    self.reconnect(&link).await?;
                    attempt += 1;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn failed(&self, error: LinkError) -> Error {
        let error = match error {
            LinkError::Nbd(error) => Error::from(error),
            LinkError::Map(error) => {
                Error::new(ErrorKind::HostMisbehaved, "the host's map contradicts itself").caused_by(error)
            }
        };
        error.of_volume(self.uri.export.as_str())
    }

    /// Another connection in the place of `lost`, to the same frozen image.
    async fn reconnect(&self, lost: &Arc<Link>) -> Result<()> {
        let mut current = self.link.write().await;
        if !Arc::ptr_eq(&current, lost) {
            // Somebody else was faster.
            return Ok(());
        }
        if let Some(&(kind, message)) = self.given_up.get() {
            return Err(Error::new(kind, message).of_volume(self.uri.export.as_str()));
        }
        let Some(frozen) = self.frozen else {
            return Err(self.give_up(
                ErrorKind::HostLost,
                "the connection is lost, and nothing tells whether the server still has the same bytes",
            ));
        };
        for wait in RECONNECT_WAITS {
            sleep(wait).await;
            match Link::open(&self.uri, &self.luns).await {
                Ok(link) => {
                    *current = Arc::new(self.same_image(link, frozen)?);
                    tracing::info!("connected again, to the same frozen image");
                    return Ok(());
                }
                Err(error) if error.is_unknown_export() => {
                    return Err(self.gone("the host does not have it any more"));
                }
                Err(error) if error.is_connection_lost() => tracing::warn!(%error, "not connected yet"),
                Err(error) => {
                    let error = Error::from(error);
                    self.give_up(error.kind(), "the host refuses another connection");
                    return Err(error.of_volume(self.uri.export.as_str()));
                }
            }
        }
        Err(self.give_up(ErrorKind::HostLost, "the host did not come back"))
    }

    /// Law P5: another frozen UUID is another image, whatever its name.
    fn same_image(&self, link: Link, frozen: Uuid) -> Result<Link> {
        if link.published.frozen != Some(frozen) {
            return Err(self.gone("another frozen image stands under its name"));
        }
        if link.connection.session().export.size != self.size {
            return Err(self.gone("it has another size now"));
        }
        Ok(link)
    }

    fn gone(&self, message: &'static str) -> Error {
        self.give_up(ErrorKind::FrozenImageGone, message)
    }

    /// No connection will do any more.
    fn give_up(&self, kind: ErrorKind, message: &'static str) -> Error {
        let (kind, message) = *self.given_up.get_or_init(|| (kind, message));
        Error::new(kind, message).of_volume(self.uri.export.as_str())
    }

    /// Whether data of `extents` lies on a disk that this connection has no context of, though the job could read it.
    fn lies_elsewhere(&self, link: &Link, extents: &[MappedExtent]) -> bool {
        let unplaced =
            |e: &MappedExtent| e.content == Content::Data && e.generation.is_direct() && e.place.is_none();
        let unselected = (0..self.luns.len()).any(|n| u16::try_from(n).is_ok_and(|n| !link.knows_disk(n)));
        unselected && extents.iter().any(unplaced)
    }
}

impl FrozenSource for NbdSource {
    fn size(&self) -> u64 {
        self.size
    }

    async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        let (extents, link) = self
            .ask(|link| async move {
                let extents = link.map(range).await?;
                Ok((extents, link))
            })
            .await?;
        if self.frozen.is_none()
            || !self.lies_elsewhere(&link, &extents)
            || self.relistings.fetch_add(1, Ordering::Relaxed) >= RELISTINGS
        {
            return Ok(extents);
        }
        self.reconnect(&link).await?;
        self.ask(|link| async move { link.map(range).await }).await
    }

    async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        self.ask(|link| async move { link.generations(range).await })
            .await
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        self.ask(|link| async move { read_aligned(&link, range).await })
            .await
    }
}

/// Reads `range` in requests that keep to the export's block sizes.
async fn read_aligned(link: &Link, range: ByteRange) -> std::result::Result<Bytes, LinkError> {
    let block = link.connection.session().export.block;
    let end_of_export = link.connection.session().export.size;
    let (minimum, maximum) = (u64::from(block.minimum.max(1)), u64::from(block.payload_limit()));
    let whole = range.align_outward(minimum).unwrap_or(range);
    let whole_end = whole.end().min(end_of_export);
    let mut bytes = BytesMut::new();
    let mut at = whole.start();
    while at < whole_end {
        let length = u32::try_from((whole_end - at).min(maximum)).unwrap_or(u32::MAX);
        let part = link.connection.read(at, length).await?;
        if whole == range && u64::from(length) == range.len() {
            return Ok(part);
        }
        bytes.extend_from_slice(&part);
        at += u64::from(length);
    }
    let skip = usize::try_from(range.start() - whole.start()).unwrap_or(usize::MAX);
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    Ok(bytes.freeze().slice(skip..skip + len))
}
