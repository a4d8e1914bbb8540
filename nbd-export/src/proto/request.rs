//! Requests: their header, compact and extended, and the commands in them.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::constants::CommandCode;
use super::context::ContextId;
use super::error::DecodeError;
use super::fields::Fields;
use super::flags::CommandFlags;
use super::session::HeaderStyle;

/// What ties replies to their request: drawn by the client, opaque to the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cookie(pub u64);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The fixed part of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// What is wanted beside the command.
    pub flags: CommandFlags,
    /// The command, known or not.
    pub command: CommandCode,
    /// What the reply must carry.
    pub cookie: Cookie,
    /// First byte of the export that is meant.
    pub offset: u64,
    /// Bytes of the export that are meant, or of the payload: see [`RequestHeader::payload_len`].
    pub length: u64,
}

impl RequestHeader {
    /// Appends the header.
    ///
    /// # Panics
    /// The length needs more than 32 bits and the style is compact: a client checks its commands before.
    pub fn encode(&self, style: HeaderStyle, out: &mut BytesMut) {
        out.put_u32(style.request_magic());
        out.put_u16(self.flags.to_wire());
        out.put_u16(self.command.0);
        out.put_u64(self.cookie.0);
        out.put_u64(self.offset);
        match style {
            HeaderStyle::Extended => out.put_u64(self.length),
            HeaderStyle::Simple | HeaderStyle::Structured => {
                out.put_u32(u32::try_from(self.length).expect("a compact request of at most 4 GiB"));
            }
        }
    }

    /// The header at the start of `input`; `None` while it is not whole.
    ///
    /// # Errors
    /// The magic is wrong. It is checked as soon as it is there, so that another protocol is not waited for.
    pub fn decode(style: HeaderStyle, input: &[u8]) -> Result<Option<Self>, DecodeError> {
        if let Some(magic) = input.first_chunk().map(|magic| u32::from_be_bytes(*magic))
            && magic != style.request_magic()
        {
            return Err(DecodeError::BadMagic { found: magic.into() });
        }
        if input.len() < style.request_header_len() {
            return Ok(None);
        }
        let mut fields = Fields::of(input);
        fields.u32()?;
        Ok(Some(Self {
            flags: CommandFlags::from_wire(fields.u16()?),
            command: CommandCode(fields.u16()?),
            cookie: Cookie(fields.u64()?),
            offset: fields.u64()?,
            length: match style {
                HeaderStyle::Extended => fields.u64()?,
                HeaderStyle::Simple | HeaderStyle::Structured => fields.u32()?.into(),
            },
        }))
    }

    /// Bytes of payload that follow. A WRITE always has one; with extended headers the flag gives one to any other
    /// command. The specification wants the flag on a WRITE too, but qemu's client (seen in 10.0.2) leaves it away, and its
    /// server and we take that as it is meant: there is nothing else that such a WRITE could be.
    pub fn payload_len(&self, style: HeaderStyle) -> u64 {
        let has_payload = self.command == CommandCode::WRITE
            || (style == HeaderStyle::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN));
        if has_payload { self.length } else { 0 }
    }

    /// What every reply to this request repeats.
    pub fn reply_to(&self) -> ReplyTo {
        ReplyTo {
            cookie: self.cookie,
            offset: self.offset,
        }
    }
}

/// What every reply repeats of its request: the cookie, and under extended headers the offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    /// The request's cookie.
    pub cookie: Cookie,
    /// The request's offset, as it stood in the header.
    pub offset: u64,
}

/// What a request asks for, with its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read; a length of 0 is answered with success.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u32,
        /// Answer with one content chunk, holes as zeroes.
        dont_fragment: bool,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// Reply when durable.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// The range is needed no more.
    Trim {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Reply when durable.
        fua: bool,
    },
    /// The range will be needed soon.
    Cache {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Reply when durable.
        fua: bool,
        /// Allocate, do not punch.
        no_hole: bool,
        /// Be fast or fail with ENOTSUP at once.
        fast: bool,
    },
    /// Status of a range in contexts.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// One extent a context, not longer than `length`.
        req_one: bool,
        /// The contexts to answer for; `None` is all that are selected.
        filter: Option<Vec<ContextId>>,
    },
}

impl Command {
    /// The header of this command.
    pub fn header(&self, style: HeaderStyle, cookie: Cookie) -> RequestHeader {
        let flag = |set: bool, flag: CommandFlags| if set { flag } else { CommandFlags::NONE };
        let (command, flags, offset, length) = match self {
            Self::Read {
                offset,
                length,
                dont_fragment,
            } => (
                CommandCode::READ,
                flag(*dont_fragment, CommandFlags::DF),
                *offset,
                u64::from(*length),
            ),
            Self::Write { offset, data, fua } => (
                CommandCode::WRITE,
                flag(*fua, CommandFlags::FUA)
                    | flag(style == HeaderStyle::Extended, CommandFlags::PAYLOAD_LEN),
                *offset,
                data.len() as u64,
            ),
            Self::Flush => (CommandCode::FLUSH, CommandFlags::NONE, 0, 0),
            Self::Trim { offset, length, fua } => {
                (CommandCode::TRIM, flag(*fua, CommandFlags::FUA), *offset, *length)
            }
            Self::Cache { offset, length } => (CommandCode::CACHE, CommandFlags::NONE, *offset, *length),
            Self::WriteZeroes {
                offset,
                length,
                fua,
                no_hole,
                fast,
            } => (
                CommandCode::WRITE_ZEROES,
                flag(*fua, CommandFlags::FUA)
                    | flag(*no_hole, CommandFlags::NO_HOLE)
                    | flag(*fast, CommandFlags::FAST_ZERO),
                *offset,
                *length,
            ),
            Self::BlockStatus {
                offset,
                length,
                req_one,
                filter,
            } => (
                CommandCode::BLOCK_STATUS,
                flag(*req_one, CommandFlags::REQ_ONE) | flag(filter.is_some(), CommandFlags::PAYLOAD_LEN),
                *offset,
                filter.as_ref().map_or(*length, |ids| 8 + 4 * ids.len() as u64),
            ),
        };
        RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length,
        }
    }

    /// Appends header and payload.
    ///
    /// # Panics
    /// As [`RequestHeader::encode`].
    pub fn encode(&self, style: HeaderStyle, cookie: Cookie, out: &mut BytesMut) {
        self.encode_head(style, cookie, out);
        if let Self::Write { data, .. } = self {
            out.put_slice(data);
        }
    }

    /// Appends all but the data of a WRITE, which follow: they need not be copied to be sent.
    ///
    /// # Panics
    /// As [`RequestHeader::encode`].
    pub fn encode_head(&self, style: HeaderStyle, cookie: Cookie, out: &mut BytesMut) {
        self.header(style, cookie).encode(style, out);
        if let Self::BlockStatus {
            length,
            filter: Some(ids),
            ..
        } = self
        {
            out.put_u64(*length);
            ids.iter().for_each(|id| out.put_u32(id.0));
        }
    }

    /// The effect length and the ids in the payload of a BLOCK_STATUS.
    pub(super) fn decode_filter(payload: &[u8]) -> Result<(u64, Vec<ContextId>), DecodeError> {
        let mut fields = Fields::of(payload);
        let length = fields.u64()?;
        let (ids, odd) = fields.rest().as_chunks::<4>();
        if !odd.is_empty() {
            return Err(DecodeError::TrailingBytes(odd.len()));
        }
        Ok((
            length,
            ids.iter().map(|id| ContextId(u32::from_be_bytes(*id))).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(command: &Command, style: HeaderStyle) -> BytesMut {
        let mut out = BytesMut::new();
        command.encode(style, Cookie(0x1122_3344_5566_7788), &mut out);
        out
    }

    #[test]
    fn golden_compact_read() {
        let read = Command::Read {
            offset: 0x1000,
            length: 512,
            dont_fragment: true,
        };
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 4, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 0,
            0, 0, 0x10, 0, 0, 0, 2, 0,
        ];
        assert_eq!(encoded(&read, HeaderStyle::Simple)[..], bytes);
        assert_eq!(encoded(&read, HeaderStyle::Structured)[..], bytes);
    }

    #[test]
    fn golden_extended_block_status_with_a_filter() {
        let status = Command::BlockStatus {
            offset: 1 << 40,
            length: 1 << 33,
            req_one: true,
            filter: Some(vec![ContextId(7)]),
        };
        assert_eq!(
            encoded(&status, HeaderStyle::Extended)[..],
            [
                0x21, 0xe4, 0x1c, 0x71, 0, 0x28, 0, 7, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0,
                1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7,
            ]
        );
    }

    #[test]
    fn an_extended_write_announces_its_payload() {
        let write = Command::Write {
            offset: 1,
            data: Bytes::from_static(b"abc"),
            fua: true,
        };
        let out = encoded(&write, HeaderStyle::Extended);
        let header = RequestHeader::decode(HeaderStyle::Extended, &out)
            .unwrap()
            .unwrap();
        assert_eq!(header.flags, CommandFlags::FUA | CommandFlags::PAYLOAD_LEN);
        assert_eq!(header.payload_len(HeaderStyle::Extended), 3);
        assert_eq!(&out[32..], b"abc");
    }

    #[test]
    fn a_write_has_its_payload_with_and_without_the_flag() {
        let header = |command, flags| RequestHeader {
            flags,
            command,
            cookie: Cookie(1),
            offset: 0,
            length: 3,
        };
        let write = header(CommandCode::WRITE, CommandFlags::NONE);
        let zeroes = header(CommandCode::WRITE_ZEROES, CommandFlags::NONE);
        for style in [
            HeaderStyle::Simple,
            HeaderStyle::Structured,
            HeaderStyle::Extended,
        ] {
            assert_eq!(write.payload_len(style), 3);
            assert_eq!(zeroes.payload_len(style), 0);
        }
    }

    #[test]
    fn a_wrong_magic_is_noticed_before_the_header_is_whole() {
        assert!(RequestHeader::decode(HeaderStyle::Extended, &[0x25, 0x60, 0x95, 0x13]).is_err());
        assert_eq!(
            RequestHeader::decode(HeaderStyle::Simple, &[0x25, 0x60, 0x95]),
            Ok(None)
        );
    }

    proptest! {
        #[test]
        fn encode_decode_identity(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u64, style in 0..3,
        ) {
            let style = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][style as usize];
            let length = if style == HeaderStyle::Extended { length } else { length & 0xffff_ffff };
            let header = RequestHeader {
                flags: CommandFlags::from_wire(flags),
                command: CommandCode(command),
                cookie: Cookie(cookie),
                offset,
                length,
            };
            let mut out = BytesMut::new();
            header.encode(style, &mut out);
            prop_assert_eq!(out.len(), style.request_header_len());
            prop_assert_eq!(RequestHeader::decode(style, &out), Ok(Some(header)));
            for cut in 0..out.len() {
                prop_assert_eq!(RequestHeader::decode(style, &out[..cut]), Ok(None));
            }
        }
    }
}
