//! Another connection in the place of a lost one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nbd_export::proto::{ContextName, Negotiated};
use nbd_export::uri::NbdUri;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::buffers::BufferPool;
use super::connection::Connection;
use super::error::NbdError;
use super::limits::{Deadlines, RECONNECT_WAIT};

/// How the connections of a pool are made, the first time and again.
pub(super) struct Redial {
    pub(super) uri: NbdUri,
    pub(super) contexts: Vec<ContextName>,
    /// What every connection has to negotiate.
    pub(super) session: Negotiated,
    /// The name of the frozen image, where it is one (law P5).
    pub(super) frozen: Option<ContextName>,
    pub(super) deadlines: Deadlines,
    /// How long a lost connection is tried to be taken up again.
    pub(super) patience: Duration,
    pub(super) buffers: BufferPool,
    /// Why the pool has failed for good.
    pub(super) given_up: OnceLock<NbdError>,
}

impl Redial {
    /// Takes up a connection that was lost of `error`, on a task of its own, which ends when nobody waits for it any more. Whoever does may
    /// be busy elsewhere for long, with a pipe that nobody reads; the time that this may take runs all the same.
    pub(super) async fn in_the_background(self: &Arc<Self>, error: NbdError) -> Result<Connection, NbdError> {
        let redial = Arc::clone(self);
        let mut task = JoinSet::new();
        task.spawn(async move { redial.again(error).await });
        // A task that broke off has connected nothing.
        let connected = task.join_next().await.and_then(Result::ok);
        connected.unwrap_or(Err(NbdError::Closed))
    }

    async fn again(&self, mut last: NbdError) -> Result<Connection, NbdError> {
        let deadline = Instant::now() + self.patience;
        let mut wait = RECONNECT_WAIT.start;
        loop {
            if let Some(error) = self.given_up.get() {
                return Err(error.clone());
            }
            if Instant::now() + wait > deadline {
                return Err(NbdError::NotBack(Box::new(last)));
            }
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(RECONNECT_WAIT.end);
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.connect())
                .await
                .unwrap_or(Err(NbdError::Timeout))
            {
                Ok(connection) => return Ok(connection),
                Err(error) if self.frozen.is_some() && error.is_unknown_export() => {
                    return Err(NbdError::Replaced);
                }
                Err(error) if error.may_pass() => {
                    tracing::debug!(%error, "not connected yet");
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection that has negotiated what the first had.
    pub(super) async fn connect(&self) -> Result<Connection, NbdError> {
        let connection = Connection::connect_with(
            &self.uri,
            self.contexts.clone(),
            self.deadlines,
            self.buffers.clone(),
        )
        .await?;
        let (was, is) = (&self.session, connection.session());
        if let Some(frozen) = &self.frozen
            && is.context_id(frozen.as_str()).is_none()
        {
            return Err(NbdError::Replaced);
        }
        let names = |session: &Negotiated| {
            let mut names: Vec<_> = session.contexts.iter().map(|c| c.name.clone()).collect();
            names.sort_unstable();
            names
        };
        // That of a frozen image tells how full its copy area is, which changes; the image has a better name.
        let redescribed = self.frozen.is_none() && was.export.description != is.export.description;
        let differs = [
            (was.export.size != is.export.size, "its size"),
            (was.export.flags != is.export.flags, "its flags"),
            (was.export.block != is.export.block, "its block sizes"),
            (was.export.name != is.export.name, "its name"),
            (redescribed, "its description"),
            (was.style != is.style, "the style of its replies"),
            (names(was) != names(is), "its metadata contexts"),
        ];
        match differs.iter().find(|(differs, _)| *differs) {
            Some((_, what)) => Err(NbdError::Changed(what)),
            None => Ok(connection),
        }
    }
}

/// Between half of a wait and all of it, so that many connections do not come back at the same instant.
fn jittered(wait: Duration) -> Duration {
    let part = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    wait.mul_f64(0.5 + part / 2.0)
}
