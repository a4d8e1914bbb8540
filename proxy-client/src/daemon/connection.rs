//! Connections: whom they are from, and how long they may take.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nbd_export::server::{Audience, Client, UnixSocket};
use nbd_export::tls::ServerTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::api::answer;
use super::limits::{
    ACCEPT_PAUSE, CONNECTION_DEADLINE, CONNECTIONS_MAX, HANDSHAKE_DEADLINE, HANDSHAKES_MAX, REQUEST_DEADLINE,
};
use super::scheduler::Scheduler;

/// Where clients connect.
pub(super) enum Listener {
    /// A socket file of our own, for its owner and root.
    Unix(UnixSocket),
    /// One that a service manager listens on, with a mode of its choice.
    PassedUnix(UnixListener),
    /// Certificates on both sides.
    Tcp(TcpListener, ServerTls),
}

/// What all connections share.
#[derive(Clone)]
pub(super) struct Door {
    scheduler: Arc<Scheduler>,
}

impl Door {
    pub(super) fn new(scheduler: Arc<Scheduler>) -> Self {
        Self { scheduler }
    }

    /// Takes connections until it is dropped. Each listener has places of its own: who fills those of one keeps nobody out of another.
    pub(super) async fn serve(self, listener: Listener) {
        let mut clients = JoinSet::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut strangers = VecDeque::new();
        loop {
            while clients.try_join_next().is_some() {}
            let accepted = self.accept(&listener, &places, &mut strangers, &mut clients);
            if let Err(error) = accepted.await {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(
        &self,
        listener: &Listener,
        places: &Arc<Semaphore>,
        strangers: &mut VecDeque<oneshot::Sender<()>>,
        clients: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let door = self.clone();
        let place = Arc::clone(places).acquire_owned();
        match listener {
            Listener::Unix(socket) => {
                let place = place.await.map_err(io::Error::other)?;
                let stream = socket.accept().await?;
                clients.spawn(async move { door.converse(stream, client(None, Vec::new()), place).await });
            }
            Listener::PassedUnix(listener) => {
                let place = place.await.map_err(io::Error::other)?;
                let (stream, _) = listener.accept().await?;
                clients.spawn(async move { door.converse(stream, client(None, Vec::new()), place).await });
            }
            Listener::Tcp(listener, tls) => {
                let (stream, from) = listener.accept().await?;
                let tls = tls.clone();
                // Those who do not say who they are take no places, and make room for those who come after them.
                strangers.retain(|stranger| !stranger.is_closed());
                if strangers.len() >= HANDSHAKES_MAX {
                    strangers.pop_front();
                }
                let (stranger, crowded_out) = oneshot::channel();
                strangers.push_back(stranger);
                clients.spawn(async move {
                    let admitted = async {
                        let (stream, names) =
                            tls.accept(stream).await.map_err(|(error, _)| error.to_string())?;
                        let place = place.await.map_err(|error| error.to_string())?;
                        Ok((stream, names, place))
                    };
                    let admitted: Result<_, String> = tokio::select! {
                        admitted = timeout(HANDSHAKE_DEADLINE, admitted) => {
                            admitted.unwrap_or_else(|_| Err("it took too long".to_owned()))
                        }
                        _ = crowded_out => Err("others came who took less time".to_owned()),
                    };
                    match admitted {
                        Ok((stream, names, place)) => {
                            let client = client(Some(from.ip().to_canonical()), names);
                            door.converse(stream, client, place).await;
                        }
                        Err(error) => tracing::info!(%from, error, "not let in"),
                    }
                });
            }
        }
        Ok(())
    }

    async fn converse<S>(self, stream: S, client: Client, _place: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let client = Arc::new(client);
        let service = service_fn(|request| {
            let (scheduler, client) = (Arc::clone(&self.scheduler), Arc::clone(&client));
            async move { Ok::<_, std::convert::Infallible>(answer(scheduler, client, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Who has said all may close his side, and wait.
            .half_close(true)
            .header_read_timeout(REQUEST_DEADLINE)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        match timeout(CONNECTION_DEADLINE, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection ended in disorder"),
            Err(_) => tracing::debug!("a connection was cut: its time is over"),
        }
    }
}

fn client(address: Option<IpAddr>, names: Vec<String>) -> Client {
    Client {
        audience: Audience { writable: false },
        address,
        names,
    }
}
