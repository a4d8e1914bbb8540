//! What a session sends and receives through: a bare socket, which can do more than others, or any stream.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, Shutdown, getsockopt, recv, sendmsg, setsockopt, shutdown, sockopt};
use tokio::io::{AsyncReadExt, AsyncWrite, Interest};
use tokio::net::UnixStream;

use super::limits::{FILE_QUEUE, PATIENCE};
use super::stream::Stream;

/// Receives and sends for one session.
pub(super) trait Wire: Send {
    /// Appends to `input` what is there, up to `len` bytes, and says how many; 0 at the end. With `alone` the session has nothing else
    /// to wait for, so that a wait in the system call does no harm.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
        len: usize,
        alone: bool,
    ) -> Poll<io::Result<usize>>;

    /// Sends what is taken without waiting, and says how much. With `more` other bytes follow at once.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
        more: bool,
    ) -> Poll<io::Result<usize>>;

    /// Whether bytes of files can be sent by reference.
    fn sends_files(&self) -> bool;

    /// Sends up to `len` bytes of `file` from `offset` on by reference, and says how many.
    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: usize,
    ) -> Poll<io::Result<usize>>;

    /// Lets go of all that was sent and is still kept back.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says goodbye: nothing more is sent.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The socket, for its end; `None` where there is none.
    fn into_socket(self: Box<Self>) -> io::Result<Option<OwnedFd>>;
}

/// A stream that is no bare socket.
pub(super) struct Wrapped(pub(super) Box<dyn Stream>);

impl Wire for Wrapped {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
        len: usize,
        _: bool,
    ) -> Poll<io::Result<usize>> {
        input.reserve(len);
        pin!(self.0.read_buf(input)).poll(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>], _: bool) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn sends_files(&self) -> bool {
        false
    }

    fn poll_send_file(&mut self, _: &mut Context<'_>, _: &File, _: u64, _: usize) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn into_socket(self: Box<Self>) -> io::Result<Option<OwnedFd>> {
        self.0.into_socket()
    }
}

/// A socket with a thread of its own.
///
/// While requests come one after another, the thread waits for the next in `recv` itself, with a time limit, instead of in the reactor:
/// that is one system call less for each of them (docs/adr/0002). Everything else is done without waiting, whatever the mode of the
/// descriptor, but for `sendfile`, which has no flag for it.
pub(super) struct Socket {
    /// Only what it says of readiness is used, which is the same for a TCP socket.
    socket: UnixStream,
    /// Whether the descriptor is in the mode in which `recv` may wait.
    waits: bool,
    /// Receives since the last one that took too long, or the last file.
    lively: u32,
    /// Whether its buffer is as wide as files want it.
    wide: bool,
}

/// Receives in a row after which the next request is waited for in `recv`.
const LIVELY: u32 = 16;

impl Socket {
    /// A Unix or TCP socket in non-blocking mode, driven by the runtime of this thread.
    ///
    /// # Errors
    /// Of the socket options.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket: UnixStream::from_std(socket)?,
            waits: false,
            lively: 0,
            wide: false,
        })
    }

    fn set_waits(&mut self, waits: bool) -> io::Result<()> {
        if self.waits != waits {
            let flags = OFlag::from_bits_retain(fcntl(&self.socket, FcntlArg::F_GETFL)?);
            let flags = if waits {
                flags.difference(OFlag::O_NONBLOCK)
            } else {
                flags.union(OFlag::O_NONBLOCK)
            };
            fcntl(&self.socket, FcntlArg::F_SETFL(flags))?;
            self.waits = waits;
        }
        Ok(())
    }

    /// Lets more pages of files queue up than copies may: they take none of our memory, and each time that the queue is full costs a
    /// turn of the reactor. TCP does this by itself.
    fn widen(&mut self) -> io::Result<()> {
        if !self.wide {
            self.wide = true;
            let is_unix = getsockopt(&self.socket, sockopt::TcpNoDelay).is_err();
            if is_unix {
                setsockopt(&self.socket, sockopt::SndBuf, &FILE_QUEUE)?;
            }
        }
        Ok(())
    }

    fn receive(&self, input: &mut BytesMut, len: usize, flags: MsgFlags) -> io::Result<usize> {
        let filled = input.len();
        input.resize(filled + len, 0);
        let received = recv(self.socket.as_raw_fd(), &mut input[filled..], flags);
        input.truncate(filled + received.unwrap_or(0));
        Ok(received?)
    }

    /// Sends something as soon as the socket takes it.
    fn poll_sending(
        &self,
        cx: &mut Context<'_>,
        mut send: impl FnMut() -> nix::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_io(Interest::WRITABLE, || Ok(send()?)) {
                Err(error) if is_passing(&error) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// Whether the same call is to be made again, now or when the socket is ready.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Wire for Socket {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
        len: usize,
        alone: bool,
    ) -> Poll<io::Result<usize>> {
        if alone && self.lively >= LIVELY {
            self.set_waits(true)?;
            match self.receive(input, len, MsgFlags::empty()) {
                Err(error) if is_passing(&error) => self.lively = 0,
                received => return Poll::Ready(received),
            }
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let received = self.socket.try_io(Interest::READABLE, || {
                self.receive(input, len, MsgFlags::MSG_DONTWAIT)
            });
            match received {
                Err(error) if is_passing(&error) => {}
                received => {
                    self.lively = self.lively.saturating_add(1);
                    return Poll::Ready(received);
                }
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
        more: bool,
    ) -> Poll<io::Result<usize>> {
        let mut flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        flags.set(MsgFlags::from_bits_retain(libc::MSG_MORE), more);
        let socket = self.socket.as_raw_fd();
        self.poll_sending(cx, || sendmsg::<()>(socket, bytes, &[], flags, None))
    }

    fn sends_files(&self) -> bool {
        true
    }

    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        self.set_waits(false)?;
        self.lively = 0;
        self.widen()?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        self.poll_sending(cx, || {
            sendfile(&self.socket, file, Some(&mut offset.clone()), len)
        })
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.socket.as_raw_fd(), Shutdown::Write)?))
    }

    fn into_socket(self: Box<Self>) -> io::Result<Option<OwnedFd>> {
        Ok(Some(self.socket.into_std()?.into()))
    }
}
