//! The server's side of requests: decoded, held against the rules, and only then given on.

use bytes::{Buf, Bytes, BytesMut};

use super::rules::{RuleBroken, check_header, check_query};
use crate::proto::constants::CommandCode;
use crate::proto::error::{PeerMisbehaved, ProtocolError};
use crate::proto::flags::CommandFlags;
use crate::proto::limits::MAX_PAYLOAD;
use crate::proto::request::{Command, ReplyTo, RequestHeader};
use crate::proto::session::Negotiated;

/// What came from a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// A request that keeps every rule: within the export, offered, aligned.
    Request {
        /// What its replies repeat.
        reply_to: ReplyTo,
        /// What it asks for.
        command: Command,
    },
    /// A request that breaks a rule. Its payload is consumed; answer it with the rule's error and go on.
    Refused {
        /// What its reply repeats.
        reply_to: ReplyTo,
        /// The rule.
        rule: RuleBroken,
    },
    /// The client ends the session. Finish what is in flight, send nothing for this, close.
    Disconnect,
}

/// Longest payload whose memory is used again for what comes behind it.
const KEPT_INPUT: usize = 64 << 10;

#[derive(Debug)]
enum State {
    /// Between two requests.
    Header,
    /// A header that keeps the rules; its payload is awaited.
    Payload(RequestHeader),
    /// A refused request whose payload must be passed over before it is answered.
    Drain {
        left: u64,
        reply_to: ReplyTo,
        rule: RuleBroken,
    },
    /// The last request was answered; what follows it cannot be passed over.
    Doomed(PeerMisbehaved),
}

/// Decodes the requests of one session.
#[derive(Debug)]
pub struct RequestDecoder {
    state: State,
}

impl Default for RequestDecoder {
    fn default() -> Self {
        Self { state: State::Header }
    }
}

impl RequestDecoder {
    /// Takes the next request from the start of `input`; `None` when more bytes are needed. `input` is never made
    /// larger than one payload of [`MAX_PAYLOAD`] needs, and that only for a write that would be served.
    ///
    /// # Errors
    /// The session must end at once: a wrong magic, or a payload too long to be passed over (the request before it
    /// was given out as [`Incoming::Refused`], to be answered first).
    pub fn decode(
        &mut self,
        input: &mut BytesMut,
        session: &Negotiated,
    ) -> Result<Option<Incoming>, ProtocolError> {
        loop {
            match std::mem::replace(&mut self.state, State::Header) {
                State::Header => {
                    let Some(header) = RequestHeader::decode(session.style, input)? else {
                        return Ok(None);
                    };
                    input.advance(session.style.request_header_len());
                    if header.command == CommandCode::DISC {
                        return Ok(Some(Incoming::Disconnect));
                    }
                    let payload = header.payload_len(session.style);
                    let reply_to = header.reply_to();
                    match check_header(&header, session) {
                        Ok(()) => self.state = State::Payload(header),
                        Err(rule) if payload > u64::from(MAX_PAYLOAD) => {
                            self.state = State::Doomed(PeerMisbehaved::PayloadTooLong(payload));
                            return Ok(Some(Incoming::Refused { reply_to, rule }));
                        }
                        Err(rule) => {
                            self.state = State::Drain {
                                left: payload,
                                reply_to,
                                rule,
                            };
                        }
                    }
                }
                State::Payload(header) => {
                    let len = usize::try_from(header.payload_len(session.style)).unwrap_or(usize::MAX);
                    if input.len() < len {
                        input.reserve(len - input.len());
                        self.state = State::Payload(header);
                        return Ok(None);
                    }
                    let payload = input.split_to(len).freeze();
                    if len > KEPT_INPUT {
                        // What is left of the memory goes with the payload, and not with an idle connection.
                        *input = BytesMut::from(&input[..]);
                    }
                    let reply_to = header.reply_to();
                    return Ok(Some(match command(&header, payload, session) {
                        Ok(command) => Incoming::Request { reply_to, command },
                        Err(rule) => Incoming::Refused { reply_to, rule },
                    }));
                }
                State::Drain { left, reply_to, rule } => {
                    let here = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    input.advance(here);
                    let left = left - here as u64;
                    if left == 0 {
                        return Ok(Some(Incoming::Refused { reply_to, rule }));
                    }
                    self.state = State::Drain { left, reply_to, rule };
                    return Ok(None);
                }
                State::Doomed(why) => {
                    self.state = State::Doomed(why);
                    return Err(why.into());
                }
            }
        }
    }

    /// Bytes of the payload that is awaited; 0 if none is. All of it will be in memory before it is given out.
    pub fn awaited_payload(&self, session: &Negotiated) -> usize {
        match &self.state {
            State::Payload(header) => {
                usize::try_from(header.payload_len(session.style)).unwrap_or(usize::MAX)
            }
            State::Header | State::Drain { .. } | State::Doomed(_) => 0,
        }
    }

    /// Whether the session may end here without cutting a request in two.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Header)
    }
}

/// The command in a header that keeps the rules.
fn command(header: &RequestHeader, payload: Bytes, session: &Negotiated) -> Result<Command, RuleBroken> {
    let (offset, length) = (header.offset, header.length);
    let has = |flag| header.flags.contains(flag);
    Ok(match header.command {
        CommandCode::READ => Command::Read {
            offset,
            length: u32::try_from(length).expect("checked against the largest payload"),
            dont_fragment: has(CommandFlags::DF),
        },
        CommandCode::WRITE => Command::Write {
            offset,
            data: payload,
            fua: has(CommandFlags::FUA),
        },
        CommandCode::FLUSH => Command::Flush,
        CommandCode::TRIM => Command::Trim {
            offset,
            length,
            fua: has(CommandFlags::FUA),
        },
        CommandCode::CACHE => Command::Cache { offset, length },
        CommandCode::WRITE_ZEROES => Command::WriteZeroes {
            offset,
            length,
            fua: has(CommandFlags::FUA),
            no_hole: has(CommandFlags::NO_HOLE),
            fast: has(CommandFlags::FAST_ZERO),
        },
        CommandCode::BLOCK_STATUS => {
            let (length, filter) = if has(CommandFlags::PAYLOAD_LEN) {
                let (length, ids) = Command::decode_filter(&payload).map_err(|_| RuleBroken::BadFilter)?;
                check_query(offset, length, Some(&ids), session)?;
                (length, Some(ids))
            } else {
                (length, None)
            };
            Command::BlockStatus {
                offset,
                length,
                req_one: has(CommandFlags::REQ_ONE),
                filter,
            }
        }
        unknown => return Err(RuleBroken::UnknownCommand(unknown)),
    })
}
