//! Several connections to one export, taken up again when they are lost.
//!
//! Invariants:
//! * every connection of a pool has negotiated the same: the same size, flags, block sizes, style and contexts, and for a
//!   frozen image its UUID (law P5). A server that comes back with anything else is another one, and the pool fails for good;
//! * whoever wrote can find out whether a connection was lost since: an acknowledged write is safe only after a FLUSH that was
//!   answered while none was lost ([`Pool::losses`]).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use nbd_export::proto::handshake::{Goal, Outcome};
use nbd_export::proto::{Command, ContextName, Descriptor, HeaderStyle, Negotiated, TransmissionFlags};
use nbd_export::uri::NbdUri;
use tokio::sync::RwLock;
use tokio::time::timeout;
use volmap::range::ByteRange;

use super::buffers::BufferPool;
use super::connection::Connection;
use super::dial::dial;
use super::error::NbdError;
use super::limits::{BYTES_PER_CONNECTION, Deadlines, EXTRA_CONNECTION, RETRIES};
use super::redial::Redial;

/// What names a frozen image (docs/x-volmap.md).
const FROZEN: &str = "x-volmap:frozen:";

/// How a pool behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolOptions {
    /// Most connections; one where the export cannot multi-conn.
    pub connections: usize,
    /// Of each connection.
    pub deadlines: Deadlines,
    /// How long a lost connection is tried to be taken up again; zero: not at all.
    pub reconnect: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            deadlines: Deadlines::default(),
            reconnect: Duration::from_secs(60),
        }
    }
}

/// The losses that were noticed, and the connections whose loss may not have been. Beside the connections themselves, which are locked
/// while one is taken up again: a loss that is overlooked is a write that is not made again.
#[derive(Default)]
struct Losses {
    noticed: u64,
    /// `None`: lost, and counted.
    watched: Vec<Option<Weak<Connection>>>,
}

impl Losses {
    fn count(&self) -> u64 {
        let unnoticed = self.watched.iter().flatten().filter(|connection| {
            connection
                .upgrade()
                .is_none_or(|connection| connection.has_ended())
        });
        self.noticed + unnoticed.count() as u64
    }
}

/// Connections to an export. Requests go to them in turn.
pub struct Pool {
    redial: Arc<Redial>,
    goodbye: Duration,
    connections: Vec<RwLock<Arc<Connection>>>,
    next: AtomicUsize,
    losses: Mutex<Losses>,
    taken_up: AtomicU64,
}

impl Pool {
    /// Enters the export of `uri` with those of `contexts` that it has, and, if any are wanted, with the name of its frozen image if it
    /// has one: who wants none writes, and a frozen image cannot be written.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn open(uri: NbdUri, contexts: &[ContextName], options: PoolOptions) -> Result<Self, NbdError> {
        let buffers = BufferPool::default();
        let mut attempt = 1;
        let (first, contexts, frozen) = loop {
            let frozen = match contexts {
                [] => None,
                _ => frozen_context(&uri, options.deadlines).await?,
            };
            let contexts: Vec<_> = contexts.iter().cloned().chain(frozen.clone()).collect();
            let first =
                Connection::connect_with(&uri, contexts.clone(), options.deadlines, buffers.clone()).await?;
            // Between the two connections the name may have gone to another frozen image, which then was not selected.
            match &frozen {
                Some(name) if first.session().context_id(name.as_str()).is_none() => {}
                _ => break (first, contexts, frozen),
            }
            if attempt == RETRIES {
                return Err(NbdError::Replaced);
            }
            attempt += 1;
        };
        let redial = Redial {
            session: first.session().clone(),
            uri,
            contexts,
            frozen,
            deadlines: options.deadlines,
            patience: options.reconnect,
            buffers,
            given_up: OnceLock::new(),
        };
        let mut pool = Self {
            redial: Arc::new(redial),
            goodbye: options.deadlines.goodbye,
            connections: vec![RwLock::new(Arc::new(first))],
            next: AtomicUsize::new(0),
            losses: Mutex::default(),
            taken_up: AtomicU64::new(0),
        };
        pool.widen(options.connections).await?;
        pool.noted().watched = pool
            .connections
            .iter_mut()
            .map(|connection| Some(Arc::downgrade(connection.get_mut())))
            .collect();
        Ok(pool)
    }

    /// Opens the connections beside the first, if that is safe and pays. A server that takes fewer is served with fewer.
    async fn widen(&mut self, most: usize) -> Result<(), NbdError> {
        if !self.session().offers(TransmissionFlags::CAN_MULTI_CONN) {
            return Ok(());
        }
        let useful = self.session().export.size.div_ceil(BYTES_PER_CONNECTION);
        let wanted = most.min(usize::try_from(useful).unwrap_or(usize::MAX));
        let extra = (1..wanted).map(|_| timeout(EXTRA_CONNECTION, self.redial.connect()));
        for connection in futures_util::future::join_all(extra).await {
            match connection.unwrap_or(Err(NbdError::Timeout)) {
                Ok(connection) => self.connections.push(RwLock::new(Arc::new(connection))),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => tracing::debug!(%error, "the server takes no more connections"),
            }
        }
        Ok(())
    }

    /// What every connection has negotiated; ids of contexts are those of the first.
    pub fn session(&self) -> &Negotiated {
        &self.redial.session
    }

    /// Number of connections.
    pub fn width(&self) -> usize {
        self.connections.len()
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// [`NbdError`]; never with a part of the bytes.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        self.ask(|connection| async move { connection.read(offset, length).await })
            .await
    }

    /// Makes a request that has nothing to show. It may be made twice, when a connection is lost before the reply.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn request(&self, command: Command) -> Result<(), NbdError> {
        self.ask(|connection| {
            let command = command.clone();
            async move { connection.command(command).await }
        })
        .await
    }

    /// What the context says from the start of `range` on: at least one extent, and not always all of the range.
    ///
    /// # Errors
    /// [`NbdError`]; [`NbdError::Unfit`] where the context is not selected.
    pub async fn status(&self, range: ByteRange, context: &str) -> Result<Vec<Descriptor>, NbdError> {
        // No more than a header can ask for.
        let longest = match self.session().style {
            HeaderStyle::Extended => 1 << 46,
            HeaderStyle::Simple | HeaderStyle::Structured => 1 << 31,
        };
        let range = ByteRange::new(range.start(), range.len().min(longest)).unwrap_or(range);
        self.ask(|connection| async move {
            let id = connection.session().context_id(context);
            let filters = connection
                .session()
                .offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
            let filter = id.filter(|_| filters).map(|id| vec![id]);
            let statuses = connection.block_status(range, filter).await?;
            statuses
                .into_iter()
                .find(|status| Some(status.context) == id)
                .map(|status| status.descriptors)
                .ok_or(NbdError::Unfit(
                    nbd_export::proto::transmission::RuleBroken::NoContexts,
                ))
        })
        .await
    }

    /// How often a connection was lost so far, noticed or not.
    pub fn losses(&self) -> u64 {
        self.noted().count()
    }

    fn noted(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a lost connection was taken up again.
    pub fn reconnections(&self) -> u64 {
        self.taken_up.load(Ordering::SeqCst)
    }

    /// Says goodbye where nobody else holds the pool any more. What is still in flight then is waited for no longer than a goodbye
    /// may take.
    pub(crate) async fn leave(self: Arc<Self>) {
        let deadline = self.goodbye;
        if let Some(pool) = Arc::into_inner(self) {
            // A server that is gone does not hear it.
            let _ = timeout(deadline, pool.disconnect()).await;
        }
    }

    /// Says goodbye on every connection.
    pub async fn disconnect(self) {
        let goodbyes = self.connections.into_iter().filter_map(|connection| {
            let connection = Arc::try_unwrap(connection.into_inner()).ok()?;
            Some(connection.disconnect())
        });
        futures_util::future::join_all(goodbyes).await;
    }

    /// Makes a request, again on another connection where the first was lost.
    async fn ask<T, F>(&self, request: impl Fn(Arc<Connection>) -> F) -> Result<T, NbdError>
    where
        F: Future<Output = Result<T, NbdError>>,
    {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let mut attempt = 1;
        loop {
            let connection = Arc::clone(&*self.connections[number].read().await);
            match request(Arc::clone(&connection)).await {
                Err(error) if self.is_lost(&error) && attempt < RETRIES => {
                    self.reconnect(number, &connection, error).await?;
                    attempt += 1;
                }
                // Exports that are not frozen shut down like any server: only a frozen image has ended with that.
                Err(error) if error.is_gone() && self.redial.frozen.is_none() => {
                    return Err(NbdError::NotBack(Box::new(error)));
                }
                answer => return answer,
            }
        }
    }

    /// Whether another connection could do better. A server that shuts down may come back with the same export, but a frozen
    /// image that has ended does not.
    fn is_lost(&self, error: &NbdError) -> bool {
        error.is_connection_lost() || (error.is_gone() && self.redial.frozen.is_none())
    }

    /// Another connection in the place of `lost`, which failed of `error`.
    async fn reconnect(
        &self,
        number: usize,
        lost: &Arc<Connection>,
        error: NbdError,
    ) -> Result<(), NbdError> {
        let mut current = self.connections[number].write().await;
        if !Arc::ptr_eq(&current, lost) {
            // Somebody else was faster.
            return Ok(());
        }
        {
            let mut losses = self.noted();
            losses.noticed += 1;
            losses.watched[number] = None;
        }
        tracing::warn!(%error, "a connection is lost");
        match self.redial.in_the_background(error).await {
            Ok(connection) => {
                *current = Arc::new(connection);
                self.noted().watched[number] = Some(Arc::downgrade(&current));
                self.taken_up.fetch_add(1, Ordering::SeqCst);
                tracing::info!("connected again");
                Ok(())
            }
            Err(error) => Err(self.redial.given_up.get_or_init(|| error).clone()),
        }
    }
}

/// The context that names the frozen image of an export, if it is one.
async fn frozen_context(uri: &NbdUri, deadlines: Deadlines) -> Result<Option<ContextName>, NbdError> {
    let Ok(query) = ContextName::new(FROZEN) else {
        return Ok(None);
    };
    let goal = Goal::ListContexts {
        export: uri.export.clone(),
        queries: vec![query],
    };
    match dial(uri, goal, deadlines.handshake).await.map(|d| d.outcome) {
        Ok(Outcome::Contexts(names)) => Ok(names.into_iter().find(|name| name.as_str().starts_with(FROZEN))),
        Ok(_) => Err(NbdError::Closed),
        Err(error) if error.knows_no_contexts() => Ok(None),
        Err(error) => Err(error),
    }
}
