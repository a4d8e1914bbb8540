//! The end of a connection: what was said last is to be heard.
//!
//! A socket that is closed while bytes are in it that nobody read, or to which more of them come, answers with a reset, and a reset takes
//! from the peer what it has not read yet: our last replies. So only our own direction is closed at first, and what still comes is read
//! and thrown away until the peer closes too; not for ever, and not without end.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Unix;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::sleep;

use super::limits::{FAREWELL, FAREWELL_BYTES, LINGER, PAYLOAD_CHUNK};

/// Closes a socket, once the peer has heard all or its time is over. `closing` says that the server ends, and waits no longer than it
/// must.
pub(super) async fn farewell(socket: OwnedFd, mut closing: watch::Receiver<bool>) {
    // What fails here is closed already.
    let Ok(mut socket) = half_closed(socket) else {
        return;
    };
    tokio::select! {
        () = drain(&mut socket) => {}
        () = sleep(FAREWELL) => {}
        () = at_the_end(&mut closing) => {}
    }
}

/// Ready when the server begins to close.
pub(super) async fn at_closing(closing: &mut watch::Receiver<bool>) {
    // A server that is gone has closed as well.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Ready when the server has waited for its clients as long as it does.
pub(super) async fn at_the_end(closing: &mut watch::Receiver<bool>) {
    at_closing(closing).await;
    sleep(LINGER).await;
}

/// A Unix or TCP socket: only what is common to both is asked of it.
fn half_closed(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = Unix::from(socket);
    socket.shutdown(Shutdown::Write)?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// Reads to the end, or as much as is read for nothing.
async fn drain(socket: &mut UnixStream) {
    let mut thrown_away = vec![0; PAYLOAD_CHUNK];
    let mut left = FAREWELL_BYTES;
    while let Ok(count @ 1..) = socket.read(&mut thrown_away).await {
        match left.checked_sub(count) {
            Some(less) => left = less,
            None => return,
        }
    }
}
