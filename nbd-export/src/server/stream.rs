//! The streams that connections negotiate over.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncRead, AsyncWrite, Join};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connection's stream during the handshake.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Takes the socket out of the runtime that drives it; gives the stream back if it is more than a socket, and has to stay.
    fn detach(self: Box<Self>) -> io::Result<Result<OwnedFd, Box<dyn Stream>>>;

    /// Takes the socket out of whatever goes through it, for its end; `None` where there is none.
    fn into_socket(self: Box<Self>) -> io::Result<Option<OwnedFd>> {
        Ok(self.detach()?.ok())
    }
}

impl Stream for UnixStream {
    fn detach(self: Box<Self>) -> io::Result<Result<OwnedFd, Box<dyn Stream>>> {
        Ok(Ok(self.into_std()?.into()))
    }
}

impl Stream for TcpStream {
    fn detach(self: Box<Self>) -> io::Result<Result<OwnedFd, Box<dyn Stream>>> {
        Ok(Ok(self.into_std()?.into()))
    }
}

/// Standard input and output.
impl Stream for Join<pipe::Receiver, pipe::Sender> {
    fn detach(self: Box<Self>) -> io::Result<Result<OwnedFd, Box<dyn Stream>>> {
        Ok(Err(self))
    }
}

/// A stream inside TLS.
impl Stream for TlsStream<Box<dyn Stream>> {
    fn detach(self: Box<Self>) -> io::Result<Result<OwnedFd, Box<dyn Stream>>> {
        Ok(Err(self))
    }

    fn into_socket(self: Box<Self>) -> io::Result<Option<OwnedFd>> {
        self.into_inner().0.into_socket()
    }
}
