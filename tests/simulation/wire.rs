//! The wire between proxy and host, and the host's half of it: requests arrive late, are handled in any order, replies arrive in any
//! order, and connections drop.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use nbd_export::export::{ContextIndex, Export, ExportError, Piece, Pieces, ReadShape};
use proxy_client::plan::mapped::{ContextChunk, ContextRole};
use uuid::Uuid;
use volmap::identity::Identity;
use volmap::range::ByteRange;

use crate::dice::Dice;

/// What a host publishes under the one name that there is.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) export: Arc<dyn Export>,
    pub(crate) frozen: Uuid,
}

/// One connection, as it was negotiated.
struct Connection {
    export: Arc<dyn Export>,
    selected: Vec<(ContextIndex, ContextRole)>,
    is_open: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    /// All contexts.
    Map(ByteRange),
    /// The generation alone.
    Generations(ByteRange),
    Read(ByteRange),
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Answer {
    Status(Vec<ContextChunk>),
    Bytes(Bytes),
    Gone,
    Failed,
    /// The connection dropped.
    Lost,
}

enum State {
    Sent,
    BeingHandled,
    Handled(Answer),
    Arrived(Answer),
}

struct Message {
    connection: usize,
    request: Request,
    state: State,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Inner {
    published: Option<Published>,
    connections: Vec<Connection>,
    messages: BTreeMap<u64, Message>,
    sent: u64,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Wire(Arc<Mutex<Inner>>);

/// A connection that was opened: its number, and the frozen image that it is for.
pub(crate) struct Opened {
    pub(crate) connection: usize,
    pub(crate) frozen: Uuid,
    pub(crate) size: u64,
}

impl Wire {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn publish(&self, published: Option<Published>) {
        self.inner().published = published;
    }

    pub(crate) fn published(&self) -> Option<Published> {
        self.inner().published.clone()
    }

    /// Connects to what is published now, with the contexts that tell of these LUNs. `None`: there is no such export.
    pub(crate) fn connect(&self, luns: &[Identity]) -> Option<Opened> {
        let Published { export, frozen } = self.published()?;
        let role = |name: &str| match name {
            "base:allocation" => Some(ContextRole::Allocation),
            "x-volmap:generation" => Some(ContextRole::Generation),
            _ => {
                let disk = name.strip_prefix("x-volmap:disk:")?;
                let number = luns.iter().position(|lun| lun.as_str() == disk)?;
                Some(ContextRole::Disk(number as u16))
            }
        };
        let contexts = export.contexts().into_iter().enumerate();
        let selected =
            contexts.filter_map(|(index, context)| Some((ContextIndex(index), role(&context.name)?)));
        let (selected, size) = (selected.collect(), export.info().size);
        let mut inner = self.inner();
        inner.connections.push(Connection {
            export,
            selected,
            is_open: true,
        });
        Some(Opened {
            connection: inner.connections.len() - 1,
            frozen,
            size,
        })
    }

    /// Sends a request; the answer arrives when it arrives.
    pub(crate) fn send(&self, connection: usize, request: Request) -> Reply {
        let mut inner = self.inner();
        inner.sent += 1;
        let number = inner.sent;
        let state = if inner.connections[connection].is_open {
            State::Sent
        } else {
            State::Arrived(Answer::Lost)
        };
        let message = Message {
            connection,
            request,
            state,
            waker: None,
        };
        inner.messages.insert(number, message);
        Reply {
            wire: self.clone(),
            number,
        }
    }

    fn pick(&self, dice: &Dice, wanted: impl Fn(&State) -> bool) -> Option<u64> {
        let inner = self.inner();
        let found: Vec<u64> = inner
            .messages
            .iter()
            .filter(|(_, message)| wanted(&message.state))
            .map(|(&number, _)| number)
            .collect();
        dice.pick(&found).copied()
    }

    /// A range that somebody waits for an answer about, if anybody does.
    pub(crate) fn asked_for(&self, dice: &Dice) -> Option<ByteRange> {
        let number = self.pick(dice, |state| !matches!(state, State::Arrived(_)))?;
        let inner = self.inner();
        Some(match inner.messages.get(&number)?.request {
            Request::Map(range) | Request::Generations(range) | Request::Read(range) => range,
        })
    }

    /// The host takes up a request that has come, and answers it. Others act while it does.
    pub(crate) fn handle_one(&self, dice: &Dice) -> bool {
        let Some(number) = self.pick(dice, |state| matches!(state, State::Sent)) else {
            return false;
        };
        let (request, export, selected) = {
            let mut inner = self.inner();
            let Some(message) = inner.messages.get_mut(&number) else {
                return false;
            };
            message.state = State::BeingHandled;
            let (request, connection) = (message.request, message.connection);
            let connection = &inner.connections[connection];
            (
                request,
                Arc::clone(&connection.export),
                connection.selected.clone(),
            )
        };
        let answer = answer(&*export, &selected, request, dice);
        // It may have been given up meanwhile, or its connection may have dropped.
        if let Some(message) = self.inner().messages.get_mut(&number)
            && matches!(message.state, State::BeingHandled)
        {
            message.state = State::Handled(answer);
        }
        true
    }

    /// A reply arrives.
    pub(crate) fn deliver_one(&self, dice: &Dice) -> bool {
        let Some(number) = self.pick(dice, |state| matches!(state, State::Handled(_))) else {
            return false;
        };
        let waker = self.inner().messages.get_mut(&number).and_then(|message| {
            let handled = std::mem::replace(&mut message.state, State::BeingHandled);
            message.state = match handled {
                State::Handled(answer) => State::Arrived(answer),
                other => other,
            };
            message.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// A connection drops, with everything that is on its way.
    pub(crate) fn drop_one(&self, dice: &Dice) -> bool {
        let mut wakers = Vec::new();
        {
            let mut inner = self.inner();
            let open: Vec<usize> = (0..inner.connections.len())
                .filter(|&c| inner.connections[c].is_open)
                .collect();
            let Some(&dropped) = dice.pick(&open) else {
                return false;
            };
            inner.connections[dropped].is_open = false;
            for message in inner.messages.values_mut().filter(|m| m.connection == dropped) {
                if !matches!(message.state, State::Arrived(_)) {
                    message.state = State::Arrived(Answer::Lost);
                    wakers.extend(message.waker.take());
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    /// Every connection drops: the host's agent was killed.
    pub(crate) fn drop_all(&self, dice: &Dice) {
        while self.drop_one(dice) {}
    }
}

/// An answer that may have arrived.
pub(crate) struct Reply {
    wire: Wire,
    number: u64,
}

impl Future for Reply {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut inner = self.wire.inner();
        let message = inner.messages.get_mut(&self.number).unwrap();
        if matches!(message.state, State::Arrived(_)) {
            match inner.messages.remove(&self.number).unwrap().state {
                State::Arrived(answer) => Poll::Ready(answer),
                _ => unreachable!("looked at a moment ago"),
            }
        } else {
            message.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.wire.inner().messages.remove(&self.number);
    }
}

fn answer(
    export: &dyn Export,
    selected: &[(ContextIndex, ContextRole)],
    request: Request,
    dice: &Dice,
) -> Answer {
    let answered = match request {
        Request::Map(range) => status(export, selected, range, dice),
        Request::Generations(range) => {
            let generation = selected
                .iter()
                .filter(|(_, role)| *role == ContextRole::Generation);
            // Without the payload filter all contexts are told.
            let filter: Vec<_> = generation.copied().collect();
            let told = if dice.one_in(4) { selected } else { &filter };
            status(export, told, range, dice)
        }
        Request::Read(range) => read(export, range),
    };
    match answered {
        Ok(answer) => answer,
        Err(ExportError::Gone(_)) => Answer::Gone,
        Err(_) => Answer::Failed,
    }
}

/// A reply may be shorter than what was asked for, and contexts need not reach equally far.
fn status(
    export: &dyn Export,
    selected: &[(ContextIndex, ContextRole)],
    range: ByteRange,
    dice: &Dice,
) -> Result<Answer, ExportError> {
    let indices: Vec<ContextIndex> = selected.iter().map(|(index, _)| *index).collect();
    let told = export.block_status(range, &indices, dice.one_in(12))?;
    let is_cut = dice.one_in(6);
    let chunks = told.into_iter().zip(selected).map(|(status, (_, role))| {
        let mut descriptors: Vec<(u64, u64)> =
            status.descriptors.iter().map(|d| (d.length, d.status)).collect();
        if is_cut {
            descriptors.truncate(1 + dice.roll(descriptors.len() as u64) as usize);
        }
        ContextChunk {
            role: *role,
            descriptors,
        }
    });
    Ok(Answer::Status(chunks.collect()))
}

fn read(export: &dyn Export, range: ByteRange) -> Result<Answer, ExportError> {
    let mut pieces = Pieces::default();
    export.read(range, ReadShape::Sparse, &mut pieces)?;
    let mut bytes = BytesMut::new();
    for piece in pieces.as_slice() {
        match piece {
            Piece::Data { bytes: data, .. } => bytes.extend_from_slice(data),
            Piece::Zeroes(zeroes) => bytes.resize(bytes.len() + zeroes.len() as usize, 0),
            Piece::File { .. } => unreachable!("nobody asked for files"),
        }
    }
    assert_eq!(bytes.len() as u64, range.len(), "a read gives all of its range");
    Ok(Answer::Bytes(bytes.freeze()))
}
