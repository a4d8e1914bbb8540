//! Open listeners, Unix and TCP alike.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::address::Address;
use super::admission::Peer;
use super::exports::Audience;
use super::limits::KEEPALIVE;
use super::unix_socket::UnixSocket;
use crate::config::Listener;
use crate::error::{Error, ErrorKind};

/// A listener and whom it serves.
pub(super) struct OpenListener {
    socket: Socket,
    pub(super) audience: Audience,
    pub(super) address: Address,
}

enum Socket {
    Unix(UnixSocket),
    Tcp(TcpListener),
}

/// A connection's stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that was accepted.
pub(super) struct AcceptedStream {
    pub(super) stream: Box<dyn Stream>,
    /// What to call it in the log.
    pub(super) name: String,
    pub(super) peer: Peer,
}

impl OpenListener {
    pub(super) async fn open(listener: &Listener) -> Result<Self, Error> {
        let audience = Audience {
            writable: listener.offers_writable(),
        };
        match listener {
            Listener::Unix { path } => {
                let socket = UnixSocket::bind(path).map_err(|why| {
                    Error::caused(ErrorKind::Listen, "cannot listen: give another --socket", why)
                })?;
                Ok(Self {
                    socket: Socket::Unix(socket),
                    audience,
                    address: Address::Unix(absolute(path)),
                })
            }
            Listener::Tcp { address, .. } => {
                let (listener, bound) = bind(*address).await.map_err(|why| {
                    Error::caused(ErrorKind::Listen, format!("cannot listen on {address}"), why)
                })?;
                Ok(Self {
                    socket: Socket::Tcp(listener),
                    audience,
                    address: Address::Tcp(bound),
                })
            }
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<AcceptedStream> {
        match &self.socket {
            Socket::Unix(socket) => {
                let stream = socket.accept().await?;
                let peer = stream.peer_cred().ok().and_then(|cred| cred.pid());
                Ok(AcceptedStream {
                    stream: Box::new(stream),
                    name: peer.map_or_else(|| "unix".to_owned(), |pid| format!("unix, pid {pid}")),
                    peer: peer.map_or(Peer::Unnamed, Peer::Process),
                })
            }
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Replies are written whole; waiting to join them with later ones only adds latency.
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                Ok(AcceptedStream {
                    stream: Box::new(stream),
                    name: peer.to_string(),
                    peer: peer.ip().into(),
                })
            }
        }
    }
}

/// Has the kernel find out whether the peer is still there.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, probes) = KEEPALIVE;
    let seconds = |time: std::time::Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds(idle))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds(interval))?;
    setsockopt(stream, sockopt::TcpKeepCount, &probes)?;
    Ok(())
}

async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Clients may run in another directory.
fn absolute(path: &std::path::Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_is_lost_without_a_word_is_noticed() {
        let (listener, address) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        keep_alive(&stream).unwrap();
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert_eq!(
            u64::from(getsockopt(&stream, sockopt::TcpKeepIdle).unwrap()),
            KEEPALIVE.0.as_secs()
        );
    }
}
