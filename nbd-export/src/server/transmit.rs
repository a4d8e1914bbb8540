//! The life of a session, from its first request to the goodbye: what the client does, the end of the server, and the times that both
//! have to keep to.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::budget::ServerBudget;
use super::farewell::farewell;
use super::handshake::Accepted;
use super::limits::{LINGER, STALL_DEADLINE};
use super::session::Session;
use super::wire::Wire;
use crate::proto::ProtocolError;

/// How a session ended, where the client did not end it properly.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The client broke a rule that leaves no way to go on.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client closed the connection in the middle of a request.
    #[error("the client left in the middle of a request")]
    CutShort,
    /// The frozen image went while bytes of it were waiting to be sent.
    #[error("the frozen image is gone, and bytes of it were waiting to be sent")]
    Gone,
    /// The client moves nothing while others wait for the memory that it takes.
    #[error("the client took and sent next to nothing for {STALL_DEADLINE:?}, and others need the memory")]
    Stalled,
}

/// What all sessions of a server share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// Where requests go that have to wait.
    pub(super) threads: Handle,
    /// Memory for the requests of all.
    pub(super) budget: Arc<ServerBudget>,
}

/// Serves requests until the client disconnects or breaks a rule, or the server closes; requests in flight are finished in each
/// case.
pub(super) async fn transmit(
    wire: Box<dyn Wire>,
    accepted: Accepted,
    shared: &Shared,
    mut closing: watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let mut session = Session::new(wire, accepted, shared);
    let mut stall = interval(STALL_DEADLINE);
    stall.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut linger = None;
    let ended = loop {
        tokio::select! {
            // The session last: one that is always busy must not keep the others from being looked at.
            biased;
            _ = closing.wait_for(|closing| *closing), if linger.is_none() => {
                session.close();
                linger = Some(Instant::now() + LINGER);
            }
            () = sleep_until(linger.unwrap_or_else(Instant::now)), if linger.is_some() && !session.is_finished() => {
                session.finish();
            }
            _ = stall.tick() => {
                if session.is_stalled() {
                    break Err(SessionError::Stalled);
                }
                session.trim();
            }
            ended = poll_fn(|cx| session.poll(cx)) => break ended,
        }
    };
    // Not for ever: inside TLS it is a word that a client may leave unread.
    let goodbye = poll_fn(|cx| session.poll_goodbye(cx));
    timeout(LINGER, goodbye).await.ok();
    session.threads_done().await;
    // All memory goes back before the client is waited for. One that took nothing while others wanted that memory has had its time.
    if let Ok(Some(socket)) = session.into_wire().into_socket()
        && !matches!(ended, Err(SessionError::Stalled))
    {
        farewell(socket, closing).await;
    }
    ended
}
