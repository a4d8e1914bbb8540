//! The streams of connections, and what a socket can do beyond reading and writing.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::libc;
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, Join};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A socket on its way from the runtime of one thread to that of another.
pub(super) enum Socket {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Socket {
    /// The stream again, driven by the runtime of this thread.
    pub(super) fn attach(self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(socket) => Box::new(UnixStream::from_std(socket)?),
            Self::Tcp(socket) => Box::new(TcpStream::from_std(socket)?),
        })
    }
}

/// A connection's stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Takes the stream out of the runtime that drives it; gives it back if it is more than a socket, and has to stay.
    fn detach(self: Box<Self>) -> io::Result<Result<Socket, Box<dyn Stream>>>;

    /// Whether bytes of files can be sent by reference: whether it is a bare socket.
    fn sends_files(&self) -> bool {
        false
    }

    /// Writes bytes that more will follow at once.
    fn poll_send_head(&mut self, cx: &mut Context<'_>, head: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write_vectored(cx, head)
    }

    /// Sends up to `len` bytes of `file` from `offset` on by reference, and says how many.
    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        let _ = (cx, file, offset, len);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Standard input and output.
impl Stream for Join<pipe::Receiver, pipe::Sender> {
    fn detach(self: Box<Self>) -> io::Result<Result<Socket, Box<dyn Stream>>> {
        Ok(Err(self))
    }
}

/// A stream inside TLS.
impl Stream for TlsStream<Box<dyn Stream>> {
    fn detach(self: Box<Self>) -> io::Result<Result<Socket, Box<dyn Stream>>> {
        Ok(Err(self))
    }
}

/// Has a socket try something until it can be done without waiting.
macro_rules! bare_socket {
    ($socket:ty, $kind:path) => {
        impl Stream for $socket {
            fn detach(self: Box<Self>) -> io::Result<Result<Socket, Box<dyn Stream>>> {
                Ok(Ok($kind(self.into_std()?)))
            }

            fn sends_files(&self) -> bool {
                true
            }

            fn poll_send_head(
                &mut self,
                cx: &mut Context<'_>,
                head: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    match self.try_io(Interest::WRITABLE, || send_head(self, head)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        done => return Poll::Ready(done),
                    }
                }
            }

            fn poll_send_file(
                &mut self,
                cx: &mut Context<'_>,
                file: &File,
                offset: u64,
                len: usize,
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    match self.try_io(Interest::WRITABLE, || send_file(self, file, offset, len)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        done => return Poll::Ready(done),
                    }
                }
            }
        }
    };
}

bare_socket!(UnixStream, Socket::Unix);
bare_socket!(TcpStream, Socket::Tcp);

fn send_head(socket: &impl AsRawFd, head: &[IoSlice<'_>]) -> io::Result<usize> {
    // Not a packet of its own, where the socket makes packets.
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
    let flags = more | MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<()>(socket.as_raw_fd(), head, &[], flags, None)?)
}

fn send_file(socket: &impl AsFd, file: &File, offset: u64, len: usize) -> io::Result<usize> {
    let mut at = i64::try_from(offset).map_err(io::Error::other)?;
    match sendfile(socket, file, Some(&mut at), len)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        sent => Ok(sent),
    }
}
