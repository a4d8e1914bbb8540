//! Options and their replies: headers, and the data of those that carry any.

use bytes::{BufMut, BytesMut};

use super::constants::{InfoCode, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionCode, OptionReplyCode};
use super::context::ContextName;
use super::error::{DecodeError, StringError};
use super::fields::Fields;
use super::text::{ExportName, printable};

/// Bytes of an option's header.
pub(super) const OPTION_HEADER_LEN: usize = 16;
/// Bytes of an option reply's header.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;

/// The header of an option at the start of `input`, as code and length of its data; `None` while it is not whole.
pub(super) fn decode_option_header(input: &[u8]) -> Result<Option<(OptionCode, u32)>, DecodeError> {
    let mut fields = Fields::of(input);
    let Ok(found) = fields.u64() else {
        return Ok(None);
    };
    if found != OPTION_MAGIC {
        return Err(DecodeError::BadMagic { found });
    }
    if input.len() < OPTION_HEADER_LEN {
        return Ok(None);
    }
    Ok(Some((OptionCode(fields.u32()?), fields.u32()?)))
}

/// Appends an option.
///
/// # Panics
/// The data have more than 4 GiB.
pub fn encode_option(option: OptionCode, data: &[u8], out: &mut BytesMut) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option.0);
    out.put_u32(u32::try_from(data.len()).expect("options of ours are short"));
    out.put_slice(data);
}

/// The header of a reply to an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OptionReplyHeader {
    pub(super) option: OptionCode,
    pub(super) reply: OptionReplyCode,
    pub(super) length: u32,
}

impl OptionReplyHeader {
    /// The header at the start of `input`; `None` while it is not whole.
    pub(super) fn decode(input: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut fields = Fields::of(input);
        let Ok(found) = fields.u64() else {
            return Ok(None);
        };
        if found != OPTION_REPLY_MAGIC {
            return Err(DecodeError::BadMagic { found });
        }
        if input.len() < OPTION_REPLY_HEADER_LEN {
            return Ok(None);
        }
        Ok(Some(Self {
            option: OptionCode(fields.u32()?),
            reply: OptionReplyCode(fields.u32()?),
            length: fields.u32()?,
        }))
    }
}

/// Appends a reply to an option.
///
/// # Panics
/// The data have more than 4 GiB.
pub fn encode_option_reply(option: OptionCode, reply: OptionReplyCode, data: &[u8], out: &mut BytesMut) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option.0);
    out.put_u32(reply.0);
    out.put_u32(u32::try_from(data.len()).expect("replies of ours are short"));
    out.put_slice(data);
}

fn put_counted(text: &str, out: &mut BytesMut) {
    out.put_u32(u32::try_from(text.len()).expect("strings of ours are short"));
    out.put_slice(text.as_bytes());
}

/// The data of INFO and GO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoRequest {
    /// The export.
    pub name: ExportName,
    /// What the client wants to know.
    pub infos: Vec<InfoCode>,
}

impl InfoRequest {
    /// Appends the data.
    ///
    /// # Panics
    /// More than 65535 codes.
    pub fn encode(&self, out: &mut BytesMut) {
        put_counted(self.name.as_str(), out);
        out.put_u16(u16::try_from(self.infos.len()).expect("few codes"));
        self.infos.iter().for_each(|code| out.put_u16(code.0));
    }

    /// Reads the data, to their last byte.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::of(data);
        let name = ExportName::from_wire(fields.counted()?)?;
        let count = fields.u16()?;
        let codes = fields.bytes(usize::from(count) * 2)?;
        fields.end()?;
        let (codes, _) = codes.as_chunks::<2>();
        Ok(Self {
            name,
            infos: codes
                .iter()
                .map(|code| InfoCode(u16::from_be_bytes(*code)))
                .collect(),
        })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextRequest {
    /// The export.
    pub export: ExportName,
    /// Names, or prefixes of names that end at a colon.
    pub queries: Vec<ContextName>,
}

/// Why the data of LIST or SET_META_CONTEXT cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ContextRequestError {
    /// Malformed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// More queries than [`super::limits::MAX_CONTEXTS`].
    #[error("{0} queries are too many")]
    TooMany(u32),
}

impl From<StringError> for ContextRequestError {
    fn from(error: StringError) -> Self {
        Self::Decode(error.into())
    }
}

impl ContextRequest {
    /// Appends the data.
    ///
    /// # Panics
    /// More than 4 Gi queries.
    pub fn encode(&self, out: &mut BytesMut) {
        put_counted(self.export.as_str(), out);
        out.put_u32(u32::try_from(self.queries.len()).expect("few queries"));
        self.queries
            .iter()
            .for_each(|query| put_counted(query.as_str(), out));
    }

    /// Reads the data, to their last byte.
    ///
    /// # Errors
    /// Malformed, or more queries than one session takes.
    pub fn decode(data: &[u8]) -> Result<Self, ContextRequestError> {
        let mut fields = Fields::of(data);
        let export = ExportName::from_wire(fields.counted()?)?;
        let count = fields.u32()?;
        if usize::try_from(count).is_ok_and(|count| count > super::limits::MAX_CONTEXTS) {
            return Err(ContextRequestError::TooMany(count));
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(ContextName::from_wire(fields.counted()?)?);
        }
        fields.end()?;
        Ok(Self { export, queries })
    }
}

/// Appends the data of a `NBD_REP_SERVER`.
pub(super) fn encode_server(name: &ExportName, description: &str, out: &mut BytesMut) {
    put_counted(name.as_str(), out);
    out.put_slice(description.as_bytes());
}

/// An export in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedExport {
    /// Its name.
    pub name: ExportName,
    /// A text for humans, may be empty.
    pub description: String,
}

impl ListedExport {
    /// Reads the data of a `NBD_REP_SERVER`.
    pub(super) fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::of(data);
        Ok(Self {
            name: ExportName::from_wire(fields.counted()?)?,
            description: printable(fields.rest()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_go() {
        let mut data = BytesMut::new();
        InfoRequest {
            name: ExportName::new("ab").unwrap(),
            infos: vec![InfoCode::BLOCK_SIZE],
        }
        .encode(&mut data);
        let mut out = BytesMut::new();
        encode_option(OptionCode::GO, &data, &mut out);
        assert_eq!(out[..], *b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02ab\0\x01\0\x03");
    }

    #[test]
    fn golden_option_reply() {
        let mut out = BytesMut::new();
        encode_option_reply(OptionCode::LIST, OptionReplyCode::ERR_UNSUP, b"no", &mut out);
        assert_eq!(
            out[..],
            *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\x80\0\0\x01\0\0\0\x02no"
        );
    }

    #[test]
    fn lying_lengths_and_trailing_bytes_are_refused() {
        for data in [
            &b"\0\0\0\x03ab\0\0"[..],
            b"\xff\xff\xff\xffab\0\0",
            b"\0\0\0\x02ab\0\x01",
            b"\0\0\0\x02ab\0\0x",
            b"\0\0\0\x02a\0\0\0",
            b"",
        ] {
            assert!(InfoRequest::decode(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn query_count_limit_is_exact() {
        let request = |count| {
            let mut data = BytesMut::new();
            ContextRequest {
                export: ExportName::default(),
                queries: vec![ContextName::new("base:").unwrap(); count],
            }
            .encode(&mut data);
            ContextRequest::decode(&data)
        };
        assert!(request(255).is_ok() && request(256).is_ok());
        assert_eq!(request(257), Err(ContextRequestError::TooMany(257)));
    }

    proptest! {
        #[test]
        fn encode_decode_identity(
            name in "[^\0]{0,40}", infos in proptest::collection::vec(any::<u16>(), 0..9),
            queries in proptest::collection::vec("[a-z]{1,5}:[^\0]{0,9}", 0..9), option: u32, reply: u32,
        ) {
            let name = ExportName::new(&name).unwrap();
            let info = InfoRequest { name: name.clone(), infos: infos.into_iter().map(InfoCode).collect() };
            let mut out = BytesMut::new();
            info.encode(&mut out);
            prop_assert_eq!(InfoRequest::decode(&out), Ok(info));

            let queries = queries.iter().map(|query| ContextName::new(query).unwrap()).collect();
            let request = ContextRequest { export: name.clone(), queries };
            out.clear();
            request.encode(&mut out);
            prop_assert_eq!(ContextRequest::decode(&out), Ok(request));

            let listed = ListedExport { name, description: "text".into() };
            let mut data = BytesMut::new();
            encode_server(&listed.name, &listed.description, &mut data);
            prop_assert_eq!(ListedExport::decode(&data), Ok(listed));

            out.clear();
            encode_option(OptionCode(option), &data, &mut out);
            let length = u32::try_from(data.len()).unwrap();
            prop_assert_eq!(decode_option_header(&out), Ok(Some((OptionCode(option), length))));
            out.clear();
            encode_option_reply(OptionCode(option), OptionReplyCode(reply), &data, &mut out);
            prop_assert_eq!(OptionReplyHeader::decode(&out), Ok(Some(OptionReplyHeader {
                option: OptionCode(option), reply: OptionReplyCode(reply), length,
            })));
        }
    }
}
