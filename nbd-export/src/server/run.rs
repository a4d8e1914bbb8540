//! The server: its listeners, its connections, its end.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::address::Addresses;
use super::admission::{Admission, Evicted, Ticket};
use super::exports::{Audience, Client, Exports};
use super::handshake::{Accepted, Bounds, negotiate};
use super::limits::{
    ACCEPT_PAUSE, BLOCKING_MAX, CONNECTION_STACK, HANDSHAKES_MAX, Limits, OTHER_DESCRIPTORS, OTHER_THREADS,
    SESSION_DESCRIPTORS, SHUTDOWN_DEADLINE,
};
use super::listener::{AcceptedStream, OpenListener};
use super::stream::Stream;
use super::transmit::{SessionError, Shared, transmit};
use super::wire::{Socket, Wrapped};
use crate::config::Listener;
use crate::error::Error;
use crate::tls::ServerTls;

/// A runtime with as many threads as a server's requests can block: with fewer, clients of one dead disk would take them all, and
/// nobody could read another volume or thaw this one. They are made when they are needed.
///
/// # Errors
/// The system gives no threads or descriptors.
pub fn runtime(limits: &Limits) -> io::Result<Runtime> {
    allow_descriptors(limits);
    tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(limits.connections * BLOCKING_MAX + OTHER_THREADS)
        .enable_all()
        .build()
}

/// Raises the soft limit of open descriptors to what the connections may take. With too few a flood would keep us from accepting.
fn allow_descriptors(limits: &Limits) {
    let needed = limits.connections * SESSION_DESCRIPTORS + HANDSHAKES_MAX + OTHER_DESCRIPTORS;
    let needed = needed as u64;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if hard < needed {
            tracing::warn!(
                "this process may open {hard} descriptors; all its connections might need {needed}"
            );
        }
        match soft < needed {
            true => setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard),
            false => Ok(()),
        }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// A server whose listeners are open. It accepts nothing before it runs.
pub struct Server {
    listeners: Vec<OpenListener>,
    addresses: Addresses,
    exports: Arc<dyn Exports>,
    limits: Limits,
    tls: Option<ServerTls>,
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
            limits: Limits::default(),
            tls: None,
        };
        for listener in listeners {
            let open = OpenListener::open(listener).await?;
            server.addresses.push(open.address.clone(), open.audience);
            server.listeners.push(open);
        }
        Ok(server)
    }

    /// The same with other limits than the usual ones.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Tells nothing outside TLS, but at listeners that are plaintext by name.
    #[must_use]
    pub fn requiring_tls(mut self, tls: ServerTls) -> Self {
        for (n, listener) in self.listeners.iter().enumerate() {
            if !listener.plaintext {
                self.addresses.secure(n);
            }
        }
        self.tls = Some(tls);
        self
    }

    /// Where the exports are reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `shutdown` is ready, or the one client of standard input and output has gone; then accepts nothing more, finishes the requests in flight, and ends the
    /// connections that are not done within [`SHUTDOWN_DEADLINE`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (close, closing) = watch::channel(false);
        let door = Door {
            exports: self.exports,
            tls: self.tls,
            admission: Admission::new(&self.limits),
            handshake_deadline: self.limits.handshake_deadline,
            shared: Shared {
                threads: Handle::current(),
                budget: Arc::default(),
            },
            closing,
        };
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            let mut door = door.clone();
            if listener.plaintext {
                door.tls = None;
            }
            accepting.spawn(accept(listener, door));
        }
        tokio::select! {
            () = shutdown => {}
            // The only client there could be has gone.
            () = async { while accepting.join_next().await.is_some() {} } => return,
        }
        // The receivers are the connections: there may be none.
        let _ = close.send(true);
        let drained = async { while accepting.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_DEADLINE, drained).await.is_err() {
            tracing::warn!("some connections did not end in time and are closed");
            accepting.shutdown().await;
        }
    }
}

/// What every connection is let in by.
#[derive(Clone)]
struct Door {
    exports: Arc<dyn Exports>,
    tls: Option<ServerTls>,
    admission: Arc<Admission>,
    handshake_deadline: Duration,
    shared: Shared,
    closing: watch::Receiver<bool>,
}

/// Accepts on one listener until the server closes, then waits for its connections.
async fn accept(mut listener: OpenListener, door: Door) {
    let mut connections = JoinSet::new();
    let mut closed = door.closing.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closed.wait_for(|closed| *closed) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(None) => break,
            Ok(Some(accepted)) => {
                let (ticket, evicted) = door.admission.enter(accepted.peer);
                let door = door.clone();
                connections.spawn(connection(accepted, door, listener.audience, ticket, evicted));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EMFILE | Errno::ENFILE)
                ) {
                    door.admission.make_room();
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection, from its greeting to its end. Whatever happens stays in here.
async fn connection(
    accepted: AcceptedStream,
    door: Door,
    audience: Audience,
    ticket: Ticket,
    evicted: Evicted,
) {
    let AcceptedStream {
        stream,
        name: peer,
        address,
        ..
    } = accepted;
    let client = Client {
        audience,
        address,
        names: Vec::new(),
    };
    let bounds = Bounds {
        deadline: door.handshake_deadline,
        evicted,
        closing: door.closing.clone(),
    };
    let negotiated = negotiate(stream, &door.exports, client, door.tls.as_ref(), &ticket, bounds).await;
    ticket.leave_handshake();
    let (stream, accepted) = match negotiated {
        Ok(Some(accepted)) => accepted,
        Ok(None) => return,
        Err(error) if error.is_fault() => {
            tracing::info!(peer, %error, "handshake failed");
            return;
        }
        Err(error) => {
            tracing::debug!(peer, %error, "handshake failed");
            return;
        }
    };
    let export = accepted.session.requested.as_str().to_owned();
    tracing::debug!(peer, export, style = ?accepted.session.style, "session begins");
    match session(stream, accepted, door.shared, door.closing).await {
        Ok(()) => tracing::debug!(peer, export, "session ended"),
        Err(error) => tracing::info!(peer, export, %error, "session ended"),
    }
}

/// A session, on a thread with a runtime of its own if the stream can go there: no other connection waits while this one copies, and
/// what wakes it costs no hand-over between threads. It ends with this future.
async fn session(
    stream: Box<dyn Stream>,
    accepted: Accepted,
    shared: Shared,
    closing: watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let socket = match stream.detach()? {
        Ok(socket) => socket,
        Err(stream) => return transmit(Box::new(Wrapped(stream)), accepted, &shared, closing).await,
    };
    let (mut end, ended) = oneshot::channel();
    thread::Builder::new()
        .name("connection".to_owned())
        .stack_size(CONNECTION_STACK)
        .spawn(move || {
            let served = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(SessionError::from)
                .and_then(|runtime| {
                    runtime.block_on(async {
                        let wire = Box::new(Socket::new(socket)?);
                        tokio::select! {
                            served = transmit(wire, accepted, &shared, closing) => served,
                            () = end.closed() => Ok(()),
                        }
                    })
                });
            // Whoever waited for it may be gone.
            let _ = end.send(served);
        })?;
    // A thread that ended without a word has panicked, and has said so in the log.
    ended.await.unwrap_or(Ok(()))
}
