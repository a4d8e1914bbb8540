//! The frozen image behind a URI, through as many connections as it takes.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nbd_export::proto::{Errno, TransmissionFlags};
use nbd_export::uri::NbdUri;
use tokio::sync::{OnceCell, RwLock};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;
use volmap::identity::Identity;
use volmap::map::Content;
use volmap::range::ByteRange;

use super::link::{Link, LinkError};
use super::published::Published;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{BufferPool, Connection, NbdError, PoolOptions};
use crate::pipeline::{FrozenSource, told};
use crate::plan::mapped::MappedExtent;
use crate::transport::direct::Geometry;

/// First and longest wait before a lost connection is taken up again: a restarted host is back within seconds, and one that is not
/// should not be pestered.
const RECONNECT_WAIT: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(8);

/// How long a connection beside the first may take: a host that has no room for it does not always say so.
const EXTRA_CONNECTION: Duration = Duration::from_secs(3);

/// Reads through the first connection until another is opened beside it. A backup that is direct has few, and another session is
/// work for the host.
const READS_ON_FIRST: usize = 4;

/// How often one request is made again because its connection was lost: a server that drops every connection at the
/// same request would otherwise hold the job for ever.
const ATTEMPTS: usize = 4;

/// How often contexts are listed again because a location is on a disk that has none yet (law P4).
const RELISTINGS: u32 = 8;

/// A connection that is taken up again when it is lost.
type Slot = RwLock<Arc<Link>>;

/// A frozen image that a host exports.
pub struct NbdSource {
    uri: NbdUri,
    luns: Vec<Identity>,
    options: PoolOptions,
    frozen: Option<Uuid>,
    size: u64,
    /// What is asked about the map goes through this one, so that it waits behind no bytes.
    first: Slot,
    /// Others for bytes, each opened when it is needed; `None`: the host has no room for it.
    others: Vec<OnceCell<Option<Slot>>>,
    reading: AtomicUsize,
    next: AtomicUsize,
    relistings: AtomicU32,
    reconnections: AtomicU32,
    /// Why there will be no other connection: the first request that finds out waits for a host, the others do not.
    given_up: OnceLock<(ErrorKind, &'static str)>,
}

impl NbdSource {
    /// Connects. `luns` are the disks that the job can read; places refer to them by position.
    ///
    /// # Errors
    /// The host cannot be reached, or has no such export.
    pub async fn open(uri: NbdUri, luns: Vec<Identity>, options: PoolOptions) -> Result<Self> {
        let opened = Link::open(&uri, &luns, options.deadlines).await;
        Self::linked(opened.map_err(Error::from), uri, luns, options)
    }

    /// The same, for an export that was there before: a host that has it no more thawed it. Whoever is refused for another reason may
    /// come again.
    ///
    /// # Errors
    /// Those of [`Self::open`]; [`ErrorKind::FrozenImageGone`].
    pub async fn open_again(uri: NbdUri, luns: Vec<Identity>, options: PoolOptions) -> Result<Self> {
        let opened = Link::open(&uri, &luns, options.deadlines).await;
        let opened = opened.map_err(|error| {
            if !error.is_unknown_export() {
                return Error::from(error);
            }
            let message = "the host does not offer the export (any more)";
            Error::new(ErrorKind::FrozenImageGone, message).caused_by(error)
        });
        Self::linked(opened, uri, luns, options)
    }

    fn linked(opened: Result<Link>, uri: NbdUri, luns: Vec<Identity>, options: PoolOptions) -> Result<Self> {
        let link = opened.map_err(|error| error.of_volume(uri.export.as_str()))?;
        let session = link.connection.session();
        let frozen = link.published.frozen;
        // Without a UUID nothing tells whether another connection has the same bytes.
        let several = frozen.is_some() && session.offers(TransmissionFlags::CAN_MULTI_CONN);
        let others = if several {
            options.connections.saturating_sub(1)
        } else {
            0
        };
        Ok(Self {
            size: session.export.size,
            frozen,
            uri,
            luns,
            options,
            first: RwLock::new(Arc::new(link)),
            others: (0..others).map(|_| OnceCell::new()).collect(),
            reading: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            relistings: AtomicU32::new(0),
            reconnections: AtomicU32::new(0),
            given_up: OnceLock::new(),
        })
    }

    /// The frozen image that every byte comes from; `None` for a server that publishes none.
    pub fn frozen(&self) -> Option<Uuid> {
        self.frozen
    }

    /// What the export says of itself.
    pub async fn published(&self) -> Published {
        self.first.read().await.published.clone()
    }

    /// The export's description, for people and for the image.
    pub async fn description(&self) -> String {
        self.first
            .read()
            .await
            .connection
            .session()
            .export
            .description
            .clone()
    }

    /// The export's description as it is now: what it says of a copy area changes all the time, and a connection was told only once.
    ///
    /// # Errors
    /// The host cannot be reached, or refuses.
    pub async fn description_now(&self) -> std::result::Result<String, NbdError> {
        let opened = Connection::connect_with(
            &self.uri,
            Vec::new(),
            self.options.deadlines,
            BufferPool::default(),
        );
        let connection = opened.await?;
        let description = connection.session().export.description.clone();
        connection.disconnect().await;
        Ok(description)
    }

    /// How often a lost connection was taken up again.
    pub fn reconnections(&self) -> u32 {
        self.reconnections.load(Ordering::Relaxed)
    }

    /// Makes a request, again on another connection where the first was lost.
    async fn ask<T, F>(&self, slot: &Slot, request: impl Fn(Arc<Link>) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, LinkError>>,
    {
        self.ask_for(slot, request)
            .await?
            .map_err(|error| self.failed(error))
    }

    /// The same, with what the host says of it.
    async fn ask_for<T, F>(
        &self,
        slot: &Slot,
        request: impl Fn(Arc<Link>) -> F,
    ) -> Result<std::result::Result<T, LinkError>>
    where
        F: Future<Output = std::result::Result<T, LinkError>>,
    {
        let mut attempt = 1;
        loop {
            let link = Arc::clone(&*slot.read().await);
            match request(Arc::clone(&link)).await {
                Err(LinkError::Nbd(error)) if error.is_connection_lost() && attempt < ATTEMPTS => {
                    tracing::warn!(%error, "the connection to the host is lost");
                    self.reconnect(slot, &link).await?;
                    attempt += 1;
                }
                answer => return Ok(answer),
            }
        }
    }

    /// The connection for a read beside so many others.
    async fn slot_for_a_read(&self, beside: usize) -> &Slot {
        if beside < READS_ON_FIRST || self.others.is_empty() {
            return &self.first;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.others.len();
        let other = self.others[number].get_or_init(|| self.another()).await;
        other.as_ref().unwrap_or(&self.first)
    }

    /// Another connection to the same frozen image, if the host has room for it.
    async fn another(&self) -> Option<Slot> {
        let opened = timeout(
            EXTRA_CONNECTION,
            Link::open(&self.uri, &self.luns, self.options.deadlines),
        );
        let link = opened.await.unwrap_or(Err(NbdError::Timeout));
        match link.map(|link| {
            self.frozen
                .is_some_and(|frozen| self.same_image(&link, frozen).is_ok())
                .then_some(link)
        }) {
            Ok(Some(link)) => Some(RwLock::new(Arc::new(link))),
            // What became of the image the first connection is told, or was told just now.
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(%error, "the host takes no more connections");
                None
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
    async fn reconnect(&self, slot: &Slot, lost: &Arc<Link>) -> Result<()> {
        let mut current = slot.write().await;
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
        let deadline = Instant::now() + self.options.reconnect;
        let mut wait = RECONNECT_WAIT.start;
        while Instant::now() + wait <= deadline {
            sleep(wait).await;
            wait = (wait * 2).min(RECONNECT_WAIT.end);
            let left = deadline.saturating_duration_since(Instant::now());
            let opened = timeout(left, Link::open(&self.uri, &self.luns, self.options.deadlines));
            match opened.await.unwrap_or(Err(NbdError::Timeout)) {
                Ok(link) => {
                    self.same_image(&link, frozen)?;
                    *current = Arc::new(link);
                    self.reconnections.fetch_add(1, Ordering::Relaxed);
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
    fn same_image(&self, link: &Link, frozen: Uuid) -> Result<()> {
        if link.published.frozen != Some(frozen) {
            return Err(self.gone("another frozen image stands under its name"));
        }
        if link.connection.session().export.size != self.size {
            return Err(self.gone("it has another size now"));
        }
        Ok(())
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
            .ask(&self.first, |link| async move {
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
        self.reconnect(&self.first, &link).await?;
        self.ask(&self.first, |link| async move { link.map(range).await })
            .await
    }

    async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
        self.ask(&self.first, |link| async move { link.generations(range).await })
            .await
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        let reading = Reading::begin(&self.reading);
        let slot = self.slot_for_a_read(reading.beside).await;
        let read = self.ask_for(slot, |link| async move { read_aligned(&link, range).await });
        read.await?.map_err(|error| match error {
            LinkError::Nbd(NbdError::Server(error)) if error.errno == Errno::Io => {
                Error::new(ErrorKind::HostCannotRead, "the host cannot read its disk")
                    .caused_by(error)
                    .of_volume(self.uri.export.as_str())
                    .in_range(range)
            }
            error => self.failed(error),
        })
    }

    async fn told_of(&self, disk: &Identity) -> Vec<Geometry> {
        told(&self.description().await, disk)
    }
}

/// A read under way.
struct Reading<'a> {
    all: &'a AtomicUsize,
    /// Others that were under way when it began.
    beside: usize,
}

impl<'a> Reading<'a> {
    fn begin(all: &'a AtomicUsize) -> Self {
        Self {
            beside: all.fetch_add(1, Ordering::Relaxed),
            all,
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
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
