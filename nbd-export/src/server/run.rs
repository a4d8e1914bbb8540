//! The server: its listeners, its connections, its end.

use std::io;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::address::Addresses;
use super::exports::{Audience, Exports};
use super::handshake::{HandshakeError, negotiate};
use super::limits::{
    ACCEPT_PAUSE, BLOCKING_THREADS_MAX, CONNECTIONS_MAX, HANDSHAKE_DEADLINE, SHUTDOWN_DEADLINE,
};
use super::listener::{OpenListener, Stream};
use super::session::transmit;
use crate::config::Listener;
use crate::error::Error;

/// A runtime with as many threads as a server's requests can block.
///
/// # Errors
/// The system gives no threads or descriptors.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
}

/// A server whose listeners are open. It accepts nothing before it runs.
pub struct Server {
    listeners: Vec<OpenListener>,
    addresses: Addresses,
    exports: Arc<dyn Exports>,
}

impl Server {
    /// Opens all listeners. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Listen`].
    pub async fn bind(listeners: &[Listener], exports: Arc<dyn Exports>) -> Result<Self, Error> {
        let mut server = Self {
            listeners: Vec::new(),
            addresses: Addresses::default(),
            exports,
        };
        for listener in listeners {
            let open = OpenListener::open(listener).await?;
            server.addresses.push(open.address.clone(), open.audience);
            server.listeners.push(open);
        }
        Ok(server)
    }

    /// Where the exports are reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `shutdown` is ready; then accepts nothing more, finishes the requests in flight, and ends the
    /// connections that are not done within [`SHUTDOWN_DEADLINE`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (close, closing) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(accept(
                listener,
                Arc::clone(&self.exports),
                Arc::clone(&slots),
                closing.clone(),
            ));
        }
        shutdown.await;
        // The receivers are the connections: there may be none.
        let _ = close.send(true);
        let drained = async { while accepting.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_DEADLINE, drained).await.is_err() {
            tracing::warn!("some connections did not end in time and are closed");
            accepting.shutdown().await;
        }
    }
}

/// Accepts on one listener until the server closes, then waits for its connections.
async fn accept(
    listener: OpenListener,
    exports: Arc<dyn Exports>,
    slots: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut closed = closing.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closed.wait_for(|closed| *closed) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // At once rather than in a queue: a client that is refused can say so, one that waits cannot.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(peer, "refused: there are {CONNECTIONS_MAX} connections");
            continue;
        };
        let exports = Arc::clone(&exports);
        let (audience, closing) = (listener.audience, closing.clone());
        connections.spawn(async move {
            connection(stream, &peer, exports, audience, closing).await;
            drop(slot);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection, from its greeting to its end. Whatever happens stays in here.
async fn connection(
    mut stream: Box<dyn Stream>,
    peer: &str,
    exports: Arc<dyn Exports>,
    audience: Audience,
    mut closing: watch::Receiver<bool>,
) {
    let handshake = timeout(
        HANDSHAKE_DEADLINE,
        negotiate(&mut stream, exports.as_ref(), audience),
    );
    let handshake = tokio::select! {
        handshake = handshake => handshake,
        _ = closing.wait_for(|closing| *closing) => return,
    };
    let accepted = match handshake {
        Ok(Ok(Some(accepted))) => accepted,
        Ok(Ok(None)) => return,
        // A client that only lists says goodbye and is gone before our answer: nothing to tell an operator.
        Ok(Err(HandshakeError::Io(error))) => {
            tracing::debug!(peer, %error, "the client left during the handshake");
            return;
        }
        Ok(Err(error)) => {
            tracing::info!(peer, %error, "handshake failed");
            return;
        }
        Err(_) => {
            tracing::info!(peer, "handshake took too long");
            return;
        }
    };
    let export = accepted.session.requested.as_str().to_owned();
    tracing::debug!(peer, export, style = ?accepted.session.style, "session begins");
    let (reader, writer) = tokio::io::split(stream);
    let ended = transmit(
        reader,
        writer,
        accepted.input,
        accepted.session,
        accepted.export,
        closing,
    )
    .await;
    match ended {
        Ok(()) => tracing::debug!(peer, export, "session ended"),
        Err(error) => tracing::info!(peer, export, %error, "session ended"),
    }
}
