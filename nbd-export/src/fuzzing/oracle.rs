//! What a scripted server has said, kept in the plainest way: a byte map for each READ, a list for each BLOCK_STATUS. A
//! client that hands on anything else is wrong.

use bytes::{BufMut, BytesMut};

use super::client::READ_MAX;
use super::script::Script;
use crate::proto::constants::ChunkCode;
use crate::proto::errno::Errno;
use crate::proto::error::ProtocolError;
use crate::proto::flags::ReplyFlags;
use crate::proto::reply::{ChunkHeader, encode_simple};
use crate::proto::transmission::{Completion, Finished, rules};
use crate::proto::{Command, ContextId, Cookie, Descriptor, HeaderStyle, Negotiated};

/// A request that is in flight, and what came for it.
pub(super) struct Asked {
    pub(super) command: Command,
    offset: u64,
    length: u64,
    /// For each byte of a READ what was sent.
    bytes: Vec<Option<u8>>,
    statuses: Vec<(ContextId, Vec<Descriptor>)>,
    failed: bool,
    done: bool,
}

impl Asked {
    fn new(command: Command) -> Self {
        let (offset, length) = match &command {
            Command::Read { offset, length, .. } => (*offset, u64::from(*length)),
            Command::BlockStatus { offset, length, .. } => (*offset, *length),
            _ => (0, 0),
        };
        let bytes = match &command {
            Command::Read { length, .. } => vec![None; *length as usize],
            _ => Vec::new(),
        };
        Self {
            command,
            offset,
            length,
            bytes,
            statuses: Vec::new(),
            failed: false,
            done: false,
        }
    }

    /// A request that a script wants, if it fits the session.
    pub(super) fn scripted(script: &mut Script<'_>, session: &Negotiated) -> Option<Self> {
        let kind = script.choice(4);
        let offset = script.number() % session.export.size.max(1);
        let length = script.number();
        let command = match kind {
            0 | 1 => Command::Read {
                offset,
                length: u32::try_from(length % READ_MAX).ok()?,
                dont_fragment: kind == 1,
            },
            2 => Command::BlockStatus {
                offset,
                length,
                req_one: script.chance(),
                filter: script.chance().then(|| vec![ContextId(6)]),
            },
            _ => Command::Flush,
        };
        Some(Self::new(command)).filter(|asked| asked.fits(session))
    }

    /// A request of each kind that the session has.
    pub(super) fn some_of_each(session: &Negotiated) -> Vec<Self> {
        let read = |offset, length, dont_fragment| Command::Read {
            offset,
            length,
            dont_fragment,
        };
        let status = |req_one| Command::BlockStatus {
            offset: 0,
            length: 4096,
            req_one,
            filter: None,
        };
        [
            read(0, 16, false),
            read(512, 4096, true),
            Command::Flush,
            status(false),
            status(true),
            read(0, 0, false),
        ]
        .map(Self::new)
        .into_iter()
        .filter(|asked| asked.fits(session))
        .collect()
    }

    fn fits(&self, session: &Negotiated) -> bool {
        let header = self.command.header(session.style, Cookie(1));
        let query = match &self.command {
            Command::BlockStatus { filter, .. } => {
                rules::check_query(self.offset, self.length, filter.as_deref(), session)
            }
            _ => Ok(()),
        };
        let wide = session.style != HeaderStyle::Extended && self.length > u64::from(u32::MAX);
        !wide && rules::check_header(&header, session).is_ok() && query.is_ok()
    }

    /// Notes content; false if it lies outside, or somebody wrote there.
    fn cover(&mut self, offset: u64, length: u64, byte: u8) -> bool {
        let Some(start) = offset.checked_sub(self.offset) else {
            return false;
        };
        let Some(end) = start
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len() as u64)
        else {
            return false;
        };
        let range = usize::try_from(start).expect("in memory")..usize::try_from(end).expect("in memory");
        let fresh = self.bytes[range.clone()].iter().all(Option::is_none);
        self.bytes[range].fill(Some(byte));
        fresh && length > 0
    }
}

/// What a client must make of a stream.
pub(super) struct Expected {
    asked: Vec<Asked>,
    /// A rule was broken that ends every session.
    fatal: bool,
    /// A length lied, so that what follows is anybody's guess.
    lost_step: bool,
}

impl Expected {
    pub(super) fn check(&self, finished: &[Finished], end: Option<&ProtocolError>) {
        if self.lost_step {
            return;
        }
        assert!(!self.fatal || end.is_some(), "a broken rule was overlooked");
        for one in finished {
            let asked = &self.asked[usize::try_from(one.cookie.0).expect("a cookie of ours") - 1];
            assert!(asked.done, "finished before the end");
            assert!(!asked.failed || one.result.is_err(), "an error was overlooked");
            match &one.result {
                Ok(Completion::Read(reply)) => {
                    let sent: Option<Vec<u8>> = asked.bytes.iter().copied().collect();
                    assert_eq!(sent.expect("nothing is missing"), reply.data);
                }
                Ok(Completion::Status(contexts)) => {
                    for context in contexts {
                        let sent: Vec<_> = asked
                            .statuses
                            .iter()
                            .filter(|(id, _)| *id == context.context)
                            .collect();
                        assert_eq!(sent.len(), 1);
                        let (last, before) = context.descriptors.split_last().expect("an extent");
                        let (sent_last, sent_before) = sent[0].1.split_last().expect("an extent");
                        assert_eq!(before, sent_before);
                        assert!(last.length <= sent_last.length && last.status == sent_last.status);
                    }
                }
                Ok(Completion::Done) | Err(_) => {}
            }
        }
    }
}

/// What holds of every result, whatever the server said.
pub(super) fn check_shape(one: &Finished, commands: &[Command], session: &Negotiated) {
    let command = &commands[usize::try_from(one.cookie.0).expect("a cookie of ours") - 1];
    match (command, &one.result) {
        (_, Err(_)) | (Command::Flush, Ok(Completion::Done)) => {}
        (Command::Read { offset, length, .. }, Ok(Completion::Read(reply))) => {
            assert_eq!(reply.data.len(), *length as usize);
            for hole in &reply.holes {
                assert!(hole.start >= *offset && hole.end <= offset + u64::from(*length));
            }
        }
        (
            Command::BlockStatus {
                offset,
                length,
                req_one,
                filter,
            },
            Ok(Completion::Status(contexts)),
        ) => {
            let ids: Vec<ContextId> = contexts.iter().map(|context| context.context).collect();
            let selected = || session.contexts.iter().map(|context| context.id).collect();
            assert_eq!(ids, filter.clone().unwrap_or_else(selected));
            for context in contexts {
                let (last, before) = context.descriptors.split_last().expect("an extent");
                let before: u64 = before.iter().map(|descriptor| descriptor.length).sum();
                assert!(before < *length && last.length > 0);
                assert!(before + last.length <= session.export.size - offset);
                assert!(!req_one || (before == 0 && last.length <= *length));
            }
        }
        other => panic!("the answer to another question: {other:?}"),
    }
}

/// A server's replies by a script, and what they mean.
pub(super) fn scripted_replies(
    mut script: Script<'_>,
    session: &Negotiated,
    asked: Vec<Asked>,
) -> (BytesMut, Expected) {
    let mut out = BytesMut::new();
    let mut expected = Expected {
        asked,
        fatal: false,
        lost_step: false,
    };
    let mut fill = 0;
    while !script.is_at_end() {
        fill = u8::wrapping_add(fill, 1);
        let number = script.choice(expected.asked.len() + 1);
        let before = out.len();
        if session.style == HeaderStyle::Simple || script.byte() == u8::MAX {
            simple_reply(&mut script, session, &mut expected, number, fill, &mut out);
        } else {
            chunk(&mut script, session, &mut expected, number, fill, &mut out);
        }
        if script.byte() == u8::MAX && out.len() > before {
            let at = before + script.choice(out.len() - before);
            out[at] ^= 1 << script.choice(8);
            expected.lost_step = true;
        }
    }
    (out, expected)
}

fn simple_reply(
    script: &mut Script<'_>,
    session: &Negotiated,
    expected: &mut Expected,
    number: usize,
    fill: u8,
    out: &mut BytesMut,
) {
    let error = script.chance().then_some(Errno::Io);
    encode_simple(error, Cookie(number as u64 + 1), out);
    let Some(asked) = expected.asked.get_mut(number).filter(|asked| !asked.done) else {
        expected.fatal = true;
        return;
    };
    expected.fatal |= session.style == HeaderStyle::Extended;
    asked.done = true;
    asked.failed |= error.is_some();
    if error.is_none() && session.style == HeaderStyle::Simple {
        out.put_bytes(fill, asked.bytes.len());
        asked.bytes.fill(Some(fill));
    } else if session.style == HeaderStyle::Structured {
        expected.fatal |= matches!(asked.command, Command::Read { .. });
    }
}

fn chunk(
    script: &mut Script<'_>,
    session: &Negotiated,
    expected: &mut Expected,
    number: usize,
    fill: u8,
    out: &mut BytesMut,
) {
    let cookie = Cookie(number as u64 + 1);
    let done = script.chance();
    let mut nothing = Asked::new(Command::Flush);
    // What comes for a request that is not open changes nothing, and ends the session.
    let open = expected.asked.get_mut(number).filter(|asked| !asked.done);
    expected.fatal |= open.is_none();
    let asked = open.unwrap_or(&mut nothing);
    asked.done |= done;
    let reads = matches!(asked.command, Command::Read { .. });
    let extended = session.style == HeaderStyle::Extended;
    let mut payload = BytesMut::new();
    let code = match script.choice(9) {
        0 => {
            expected.fatal |= !done;
            ChunkCode::NONE
        }
        kind @ 1..=3 => {
            // Mostly within the request.
            let (offset, length) = if script.byte() == u8::MAX {
                (script.number(), script.number() % READ_MAX)
            } else {
                (
                    asked.offset + u64::from(script.word()) % READ_MAX,
                    u64::from(script.word()) % READ_MAX,
                )
            };
            payload.put_u64(offset);
            expected.fatal |= !asked.cover(offset, length, if kind == 3 { 0 } else { fill });
            if kind == 3 {
                payload.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                ChunkCode::OFFSET_HOLE
            } else {
                payload.put_bytes(fill, usize::try_from(length).unwrap_or(0));
                ChunkCode::OFFSET_DATA
            }
        }
        4 | 5 => {
            let id = ContextId(u32::from(5 + script.byte() % 3));
            let descriptors: Vec<Descriptor> = (0..script.choice(5))
                .map(|_| Descriptor {
                    length: if extended {
                        script.number()
                    } else {
                        script.number() & 0xffff_ffff
                    },
                    status: script.byte().into(),
                })
                .collect();
            payload.put_u32(id.0);
            if extended {
                payload.put_u32(u32::try_from(descriptors.len()).unwrap_or(0));
            }
            for descriptor in &descriptors {
                if extended {
                    payload.put_u64(descriptor.length);
                    payload.put_u64(descriptor.status);
                } else {
                    payload.put_u32(u32::try_from(descriptor.length).unwrap_or(0));
                    payload.put_u32(u32::try_from(descriptor.status).unwrap_or(0));
                }
            }
            expected.fatal |= reads
                || session.context(id).is_none()
                || descriptors.is_empty()
                || descriptors.iter().any(|descriptor| descriptor.length == 0)
                || asked.statuses.iter().any(|(other, _)| *other == id);
            asked.statuses.push((id, descriptors));
            if extended {
                ChunkCode::BLOCK_STATUS_EXT
            } else {
                ChunkCode::BLOCK_STATUS
            }
        }
        6 | 7 => {
            payload.put_u32(script.byte().into());
            let text = script.choice(20);
            payload.put_u16(u16::try_from(text).unwrap_or(0));
            payload.put_slice(&[b'e'; 20][..text]);
            asked.failed = true;
            if script.chance() {
                payload.put_u64(asked.offset);
                ChunkCode::ERROR_OFFSET
            } else {
                ChunkCode::ERROR
            }
        }
        _ => ChunkCode(script.word()),
    };
    if ![0, 1, 2, 5, 6].contains(&code.0) {
        // It may be an error of a kind that nobody knows.
        asked.failed = true;
    }
    let misplaced = extended && script.byte() == u8::MAX;
    expected.fatal |= misplaced;
    ChunkHeader {
        flags: if done { ReplyFlags::DONE } else { ReplyFlags::NONE },
        chunk: code,
        cookie,
        offset: extended.then_some(asked.offset ^ u64::from(misplaced)),
        length: payload.len() as u64,
    }
    .encode(out);
    out.put_slice(&payload);
}
