//! Open listeners, Unix and TCP alike.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::address::Address;
use super::admission::Peer;
use super::exports::Audience;
use super::limits::KEEPALIVE;
use super::stream::Stream;
use super::unix_socket::UnixSocket;
use crate::config::{Listener, PassedAddress, PassedSocket, Stdio};
use crate::error::{Error, ErrorKind};

/// A listener and whom it serves.
pub(super) struct OpenListener {
    socket: Socket,
    pub(super) audience: Audience,
    /// Whether it goes without TLS where the server has it.
    pub(super) plaintext: bool,
    pub(super) address: Address,
}

enum Socket {
    Unix(UnixSocket),
    /// Bound by somebody else, whose file it is.
    PassedUnix(UnixListener),
    Tcp(TcpListener),
    /// One connection that is there already, until it was accepted.
    Single(Option<Box<dyn Stream>>),
}

/// A connection that was accepted.
pub(super) struct AcceptedStream {
    pub(super) stream: Box<dyn Stream>,
    /// What to call it in the log.
    pub(super) name: String,
    pub(super) peer: Peer,
    /// The address that it comes from, where it is not this machine's socket.
    pub(super) address: Option<IpAddr>,
}

impl OpenListener {
    pub(super) async fn open(listener: &Listener) -> Result<Self, Error> {
        let audience = Audience {
            writable: listener.offers_writable(),
        };
        match listener {
            Listener::Unix { path, plaintext } => {
                let socket = UnixSocket::bind(path).map_err(|why| {
                    Error::caused(ErrorKind::Listen, "cannot listen: give another --socket", why)
                })?;
                Ok(Self {
                    socket: Socket::Unix(socket),
                    audience,
                    plaintext: *plaintext,
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
                    plaintext: false,
                    address: Address::Tcp(bound),
                })
            }
            Listener::Passed(passed) => {
                let (socket, address) = take_over(passed)
                    .map_err(|why| Error::caused(ErrorKind::Listen, "a socket of LISTEN_FDS", why))?;
                Ok(Self {
                    socket,
                    audience,
                    plaintext: false,
                    address,
                })
            }
            Listener::Single(stdio) => {
                let stream = connected(stdio)
                    .map_err(|why| Error::caused(ErrorKind::Listen, "standard input and output", why))?;
                Ok(Self {
                    socket: Socket::Single(Some(stream)),
                    audience,
                    plaintext: false,
                    address: Address::Nowhere,
                })
            }
        }
    }

    /// The next connection; `None` where there will be no other.
    pub(super) async fn accept(&mut self) -> io::Result<Option<AcceptedStream>> {
        let accepted = match &mut self.socket {
            Socket::Unix(socket) => from_process(socket.accept().await?),
            Socket::PassedUnix(listener) => from_process(listener.accept().await?.0),
            Socket::Single(stream) => {
                return Ok(stream.take().map(|stream| AcceptedStream {
                    stream,
                    name: "standard input and output".to_owned(),
                    peer: Peer::Unnamed,
                    address: None,
                }));
            }
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Replies are written whole; waiting to join them with later ones only adds latency.
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                AcceptedStream {
                    stream: Box::new(stream),
                    name: peer.to_string(),
                    peer: peer.ip().into(),
                    address: Some(peer.ip().to_canonical()),
                }
            }
        };
        Ok(Some(accepted))
    }
}

/// A connection of a Unix socket.
fn from_process(stream: UnixStream) -> AcceptedStream {
    let peer = stream.peer_cred().ok().and_then(|cred| cred.pid());
    AcceptedStream {
        stream: Box::new(stream),
        name: peer.map_or_else(|| "unix".to_owned(), |pid| format!("unix, pid {pid}")),
        peer: peer.map_or(Peer::Unnamed, Peer::Process),
        address: None,
    }
}

/// Listens on a socket that was passed.
fn take_over(passed: &PassedSocket) -> io::Result<(Socket, Address)> {
    let socket = passed.socket.try_clone()?;
    match &passed.address {
        PassedAddress::Unix(path) => {
            let listener = net::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            let address = path.clone().map_or(Address::Nowhere, Address::Unix);
            Ok((Socket::PassedUnix(UnixListener::from_std(listener)?), address))
        }
        PassedAddress::Tcp(address) => {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            Ok((Socket::Tcp(listener), Address::Tcp(*address)))
        }
    }
}

/// The connection at standard input and output.
fn connected(stdio: &Stdio) -> io::Result<Box<dyn Stream>> {
    match stdio {
        Stdio::Socket(socket) => {
            let stream = net::UnixStream::from(socket.try_clone()?);
            stream.set_nonblocking(true)?;
            Ok(Box::new(UnixStream::from_std(stream)?))
        }
        Stdio::Pipes { input, output } => {
            let input = pipe::Receiver::from_owned_fd(input.try_clone()?)?;
            let output = pipe::Sender::from_owned_fd(output.try_clone()?)?;
            Ok(Box::new(tokio::io::join(input, output)))
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

    /// Small replies go out at once, and a peer that is lost without a word is noticed.
    #[tokio::test]
    async fn a_tcp_client_waits_for_nothing_and_is_not_waited_for_in_vain() {
        let free = bind("127.0.0.1:0".parse().unwrap()).await.unwrap().1;
        let listener = Listener::Tcp {
            address: free,
            writable: false,
        };
        let mut open = OpenListener::open(&listener).await.unwrap();
        let _client = TcpStream::connect(free).await.expect("the port that was given");
        let accepted = open.accept().await.unwrap().unwrap();
        let socket = accepted.stream.into_socket().unwrap().unwrap();
        assert!(getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        assert_eq!(
            u64::from(getsockopt(&socket, sockopt::TcpKeepIdle).unwrap()),
            KEEPALIVE.0.as_secs()
        );
    }
}
