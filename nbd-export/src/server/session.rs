//! The transmission phase of one connection, driven by one thread: requests are decoded, answered here where that needs no wait, on
//! other threads where it does, and sent as they are ready.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::budget::Budget;
use super::handshake::Accepted;
use super::limits::{
    BATCH_BYTES, BATCH_REPLIES, BLOCKING_MAX, DESCRIPTOR_COST, EXTENT_LEN_MIN, INPUT_CHUNK, PAYLOAD_CHUNK,
    REQUEST_COST, ROUNDS, STALL_BYTES, STATUS_COST,
};
use super::outgoing::{Outgoing, Segment};
use super::replies::{Answerer, Replies, Selected};
use super::transmit::{SessionError, Shared};
use super::wire::Wire;
use crate::export::ContextIndex;
use crate::proto::transmission::{Incoming, ReplyEncoder, RequestDecoder};
use crate::proto::{Command, Errno, Negotiated, ReplyTo};

/// One connection in its transmission phase.
pub(super) struct Session {
    wire: Box<dyn Wire>,
    input: BytesMut,
    decoder: RequestDecoder,
    negotiated: Negotiated,
    answerer: Arc<Answerer>,
    replies: Replies,
    outgoing: Outgoing,
    budget: Budget,
    /// What the payload that is being received takes of the budget.
    prepaid: Option<usize>,
    /// Every request that was received has been started: only then is more received, so that what a client sends and does not let us
    /// answer stays in its own memory.
    hungry: bool,
    /// A request that the budget had no room for.
    waiting: Option<Incoming>,
    threads: Handle,
    /// Requests that other threads serve, and the answers that they give.
    blocking: usize,
    answered: mpsc::UnboundedReceiver<Answered>,
    answers: mpsc::UnboundedSender<Answered>,
    /// New requests are refused: the server is closing.
    closing: bool,
    /// No more requests are read.
    finished: bool,
    /// Why, if it was the client's fault: said when everything before it is answered.
    fault: Option<SessionError>,
    /// The stream may keep bytes back that were given to it.
    unflushed: bool,
    /// Bytes that were received since the connection began.
    received: u64,
    /// Bytes that had moved when last looked at, if the client held memory then.
    moved_then: Option<u64>,
    /// Bytes that had been received at the last look.
    received_then: u64,
}

/// A reply from another thread.
struct Answered {
    segments: Vec<Segment>,
    cost: usize,
}

impl Session {
    pub(super) fn new(wire: Box<dyn Wire>, accepted: Accepted, shared: &Shared) -> Self {
        let Accepted {
            session: negotiated,
            export,
            input,
        } = accepted;
        let offered = export.contexts();
        let position = |name: &str| offered.iter().position(|known| known.name == name);
        let selected = negotiated.contexts.iter().filter_map(|context| {
            Some(Selected {
                id: context.id,
                index: ContextIndex(position(context.name.as_str())?),
            })
        });
        let answerer = Answerer {
            selected: selected.collect(),
            encoder: ReplyEncoder::new(&negotiated),
            export,
        };
        let (answers, answered) = mpsc::unbounded_channel();
        Self {
            replies: Replies::new(wire.sends_files()),
            wire,
            input,
            decoder: RequestDecoder::default(),
            negotiated,
            answerer: Arc::new(answerer),
            outgoing: Outgoing::default(),
            budget: Budget::of(&shared.budget),
            prepaid: None,
            hungry: false,
            waiting: None,
            threads: shared.threads.clone(),
            blocking: 0,
            answered,
            answers,
            closing: false,
            finished: false,
            fault: None,
            unflushed: false,
            received: 0,
            moved_then: None,
            received_then: 0,
        }
    }

    /// Does all that can be done without waiting; ready when the session is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        for _ in 0..ROUNDS {
            while self.blocking > 0
                && let Poll::Ready(Some(Answered { segments, cost })) = self.answered.poll_recv(cx)
            {
                self.blocking -= 1;
                self.queue(segments, cost);
            }
            let served = self.serve(cx);
            let sent = self.send(cx)?;
            if self.is_over() {
                return Poll::Ready(self.fault.take().map_or(Ok(()), Err));
            }
            let read = self.hungry && !self.finished && self.has_room(cx) && self.read(cx)?;
            if !(served || sent || read) {
                return Poll::Pending;
            }
        }
        // A client that always has one more request must not keep the rest from being looked at: shutdown, stall, the end.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Refuses new requests: the server is closing.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Reads no more requests.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Says goodbye, where the stream has a way to.
    pub(super) fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_shutdown(cx)
    }

    /// Whether nothing more is to come from either side.
    fn is_over(&self) -> bool {
        self.finished
            && self.waiting.is_none()
            && self.blocking == 0
            && self.outgoing.is_empty()
            && !self.unflushed
    }

    /// Serves requests that are here, up to a batch of replies; whether there was one.
    fn serve(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        self.hungry = false;
        while self.outgoing.replies() < BATCH_REPLIES && self.outgoing.len() < BATCH_BYTES {
            let Some(incoming) = self.waiting.take().or_else(|| self.decode()) else {
                self.hungry = true;
                break;
            };
            if let Some(incoming) = self.start(incoming, cx) {
                self.waiting = Some(incoming);
                break;
            }
            any = true;
        }
        any
    }

    /// The next request, if it is here. A fault or the end lets no more of them come.
    fn decode(&mut self) -> Option<Incoming> {
        if self.finished {
            return None;
        }
        match self.decoder.decode(&mut self.input, &self.negotiated) {
            Ok(Some(Incoming::Disconnect)) => self.finished = true,
            Ok(other) => return other,
            Err(fault) => {
                self.finished = true;
                self.fault = Some(fault.into());
            }
        }
        None
    }

    /// Starts a request, or gives it back if there is no room for it now.
    fn start(&mut self, incoming: Incoming, cx: &mut Context<'_>) -> Option<Incoming> {
        let needed = match &incoming {
            Incoming::Request { command, .. } if self.blocking < BLOCKING_MAX => cost(command),
            Incoming::Request { .. } => return Some(incoming),
            // It counts too: a client could send such requests and never read the answers.
            Incoming::Refused { .. } | Incoming::Disconnect => REQUEST_COST,
        };
        let paid = self.prepaid.take().map(Poll::Ready);
        let Poll::Ready(cost) = paid.unwrap_or_else(|| self.budget.poll_take(needed, cx)) else {
            return Some(incoming);
        };
        match incoming {
            Incoming::Request { reply_to, .. } if self.closing => {
                let text = "the server is shutting down";
                self.answerer
                    .error(reply_to, Errno::Shutdown, text, &mut self.replies);
                self.push(cost);
            }
            Incoming::Request { reply_to, command } => {
                let (answerer, replies) = (&self.answerer, &mut self.replies);
                let at_once = catch_unwind(AssertUnwindSafe(|| {
                    answerer.answer_at_once(reply_to, &command, replies)
                }));
                match at_once {
                    Ok(true) => self.push(cost),
                    Ok(false) => self.hand_off(reply_to, command, cost),
                    Err(_) => {
                        self.replies = Replies::new(self.wire.sends_files());
                        self.answerer.bug(reply_to, &mut self.replies);
                        self.push(cost);
                    }
                }
            }
            Incoming::Refused { reply_to, rule } => {
                self.answerer.refusal(reply_to, rule, &mut self.replies);
                self.push(cost);
            }
            Incoming::Disconnect => self.finished = true,
        }
        None
    }

    /// Queues the reply that was just written.
    fn push(&mut self, cost: usize) {
        let segments: Vec<Segment> = self.replies.drain().collect();
        self.queue(segments, cost);
    }

    /// Queues a reply. From here on it costs what it takes, and no more what it might have taken.
    fn queue(&mut self, segments: Vec<Segment>, cost: usize) {
        let taken = REQUEST_COST + segments.iter().map(Segment::memory).sum::<usize>();
        self.budget.settle(cost, taken);
        self.outgoing.push(segments, taken);
    }

    /// Serves a request on a thread that may block.
    fn hand_off(&mut self, to: ReplyTo, command: Command, cost: usize) {
        let answerer = Arc::clone(&self.answerer);
        let answers = self.answers.clone();
        let memory = match &command {
            Command::Read { length, .. } => usize::try_from(*length).unwrap_or(0),
            _ => 0,
        };
        let mut replies = Replies::with(self.replies.pieces.for_another(memory));
        self.blocking += 1;
        self.threads.spawn_blocking(move || {
            let answered = catch_unwind(AssertUnwindSafe(|| {
                answerer.answer(to, &command, &mut replies);
            }));
            if answered.is_err() {
                replies = Replies::default();
                answerer.bug(to, &mut replies);
            }
            let segments = replies.drain().collect();
            // Nobody to send it: the connection is gone.
            let _ = answers.send(Answered { segments, cost });
        });
    }

    /// Sends what the stream takes; whether it took something.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let mut any = false;
        while !self.outgoing.is_empty() {
            // What goes by reference is read only now. Nobody vouches for the file any more when the image is gone (law H6), and a
            // reply that has begun cannot be taken back.
            if self.outgoing.is_at_file() && self.answerer.export.standing().is_err() {
                return Err(SessionError::Gone);
            }
            let pieces = &mut self.replies.pieces;
            match self.outgoing.poll_send(cx, self.wire.as_mut(), pieces) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => return Ok(any),
            }
            any = true;
            while let Some(cost) = self.outgoing.pop_sent() {
                self.budget.give_back(cost);
            }
        }
        self.unflushed |= any;
        // Nothing to do for a socket; a stream that encrypts keeps back what the socket did not take.
        if self.unflushed && self.wire.poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(any)
    }

    /// Whether there is memory for the payload that is awaited. It is taken before a byte of it is read, because a client may keep the
    /// last one back for as long as it likes.
    fn has_room(&mut self, cx: &mut Context<'_>) -> bool {
        let payload = self.decoder.awaited_payload(&self.negotiated);
        if payload > 0
            && self.prepaid.is_none()
            && let Poll::Ready(cost) = self.budget.poll_take(payload.saturating_add(REQUEST_COST), cx)
        {
            self.prepaid = Some(cost);
        }
        payload == 0 || self.prepaid.is_some()
    }

    /// Reads what is there; whether there was something.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let chunk = match self.decoder.is_between_requests() {
            true => INPUT_CHUNK,
            // Not more than is missing: the memory for it is there, and for more it would grow.
            false => match self.decoder.awaited_payload(&self.negotiated) {
                0 => PAYLOAD_CHUNK,
                payload => payload.saturating_sub(self.input.len()).clamp(1, PAYLOAD_CHUNK),
            },
        };
        // Nothing of this session is under way, so only the client can be waited for; a closing server lets no requests come.
        let alone = self.blocking == 0
            && self.outgoing.is_empty()
            && !self.unflushed
            && self.prepaid.is_none()
            && !self.closing;
        let received = self.wire.poll_receive(cx, &mut self.input, chunk, alone)?;
        let Poll::Ready(count) = received else {
            return Ok(false);
        };
        self.received += count as u64;
        if count == 0 {
            self.finished = true;
            // Some clients close without DISC; between requests nothing is lost by it.
            let clean = self.input.is_empty() && self.decoder.is_between_requests();
            self.fault = (!clean).then_some(SessionError::CutShort);
        }
        Ok(true)
    }

    /// Gives up the memory that a busy connection keeps for its next requests, once there are none.
    pub(super) fn trim(&mut self) {
        let idle =
            self.blocking == 0 && self.outgoing.is_empty() && self.waiting.is_none() && self.input.is_empty();
        if idle && self.received == self.received_then {
            self.replies = Replies::new(self.wire.sends_files());
            self.input = BytesMut::new();
        }
        self.received_then = self.received;
    }

    /// Lets go of all but the stream.
    pub(super) fn into_wire(self) -> Box<dyn Wire> {
        self.wire
    }

    /// Waits until no other thread serves a request of this connection: until then they take memory, and the place of a connection.
    pub(super) async fn threads_done(&mut self) {
        while self.blocking > 0 && self.answered.recv().await.is_some() {
            self.blocking -= 1;
        }
    }

    /// Whether the client moved next to nothing since this was last asked, while somebody else waits for memory.
    pub(super) fn is_stalled(&mut self) -> bool {
        // A payload that is whole waits for us.
        let holds = !self.outgoing.is_empty() || self.prepaid.is_some() && self.waiting.is_none();
        let moved = holds.then(|| self.outgoing.sent() + self.received);
        let least = if self.budget.held() > STALL_BYTES {
            STALL_BYTES as u64
        } else {
            1
        };
        let stuck = matches!((moved, self.moved_then), (Some(now), Some(then)) if now - then < least);
        self.moved_then = moved;
        stuck && self.budget.is_wanted()
    }
}

/// Bytes of memory that a request may need.
fn cost(command: &Command) -> usize {
    let data = match command {
        Command::Read { length, .. } => usize::try_from(*length).unwrap_or(usize::MAX),
        Command::Write { data, .. } => data.len(),
        Command::BlockStatus {
            req_one: false,
            length,
            ..
        } => {
            let extents = usize::try_from(*length).unwrap_or(usize::MAX) / EXTENT_LEN_MIN;
            extents.saturating_mul(DESCRIPTOR_COST).min(STATUS_COST)
        }
        Command::Cache { .. } => usize::try_from(crate::export::limits::CACHE_STEP).unwrap_or(usize::MAX),
        Command::BlockStatus { req_one: true, .. }
        | Command::Flush
        | Command::Trim { .. }
        | Command::WriteZeroes { .. } => 0,
    };
    data.saturating_add(REQUEST_COST)
}
